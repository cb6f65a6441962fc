"""Ctrl-C: one interrupt ends a program or a batch, whatever it waits for."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.patience import PATIENCE

HEAD = """
import asyncio, signal, sys, threading, time
import sgl_mlx as sgl
from sgl_mlx.testing import ScriptedBackend

backend = ScriptedBackend("x", manual=True)

@sgl.function
def ask(s, number):
    s += f"{number}" + sgl.gen("x")
    s["x"]

@sgl.function
def leave(s, number):
    s += f"{number}" + sgl.gen("x")

@sgl.function
def stuck(s, number):
    s += f"{number}" + sgl.gen("x")
    time.sleep(1000)

@sgl.function
def retry(s, number):
    while True:
        try:
            s += f"{number}" + sgl.gen("x")
            s["x"]
        except Exception:
            pass

def tell():
    while not backend.pending:
        time.sleep(0.01)
    print("ready", flush=True)
    if "lost" in sys.argv:
        time.sleep(0.05)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

rows = [[i] for i in range(300)]
threading.Thread(target=tell, daemon=True).start()
"""
WAITS = {
    "run": "ask.run(1, backend=backend)",
    "run, body that retries": "retry.run(1, backend=backend)",
    "read": "leave.run(1, backend=backend)['x']",
    "stream": "list(ask.run(1, backend=backend, stream=True).text_iter())",
    "stream, read": "ask.run(1, backend=backend, stream=True)['x']",
    "stream, return value": "leave.run(1, backend=backend, stream=True).text()",
    "batch": "ask.run_batch(rows, backend=backend)",
    "batch without reading": "leave.run_batch(rows, backend=backend)",
    "batch, bodies that retry": "retry.run_batch(rows, backend=backend)",
    "batch, bodies that are stuck": "stuck.run_batch(rows, backend=backend)",
    "batch of few threads": "ask.run_batch(rows, backend=backend, num_threads=2)",
    "generator": "list(ask.run_batch(rows, backend=backend, generator_style=True))",
    "progress bar": "ask.run_batch(rows, backend=backend, progress_bar=True)",
    "asyncio": "asyncio.run(ask.run_async(1, backend=backend))",
    "asyncio batch": "asyncio.run(ask.run_batch_async(rows, backend=backend))",
}


OURS = [wait for wait in WAITS if "asyncio" not in wait]
"""Waits that are not those of Python's event loop."""


@pytest.mark.parametrize(
    ("wait", "how"), [*((wait, "sent") for wait in WAITS), *((wait, "lost") for wait in OURS)]
)
def test_one_interrupt_ends_what_waits(wait: str, how: str) -> None:
    """A lost interrupt reaches another thread, and so does not interrupt the main thread's wait."""
    command = [sys.executable, "-c", HEAD + WAITS[wait], how]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.readline()
            if how == "sent":
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
