"""Ctrl-C during `sgl-mlx run`, on the embedded model: one is enough, whatever the program does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

SGL_MLX = Path(sys.executable).with_name("sgl-mlx")
SOURCE = """
import sys
import sgl_mlx as sgl

@sgl.function
def count(s, number):
    s += f"{number}: One, two," + sgl.gen("x", max_tokens=4000, ignore_eos=True)
    s["x"]

@sgl.function
def leave(s):
    s += "One, two," + sgl.gen("x", max_tokens=4000, ignore_eos=True)
    print("ready", file=sys.stderr, flush=True)

@sgl.function
def wait(s):
    s += "One, two," + sgl.gen("x", max_tokens=4000, ignore_eos=True)
    print("ready", file=sys.stderr, flush=True)
    s["x"]

@sgl.function
def batch(s):
    s += "Many:"
    print("ready", file=sys.stderr, flush=True)
    count.run_batch([{"number": i} for i in range(200)])

if __name__ == "__main__":
    batch.run()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        [":leave"],
        [":wait"],
        [":batch"],
        [":leave", "--stream"],
        [":wait", "--json"],
        ["", "--as-sglang"],
    ],
)
def test_one_interrupt_ends_the_run(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "prog.py"
    file.write_text(SOURCE)
    function, *options = arguments
    command = [SGL_MLX, "run", f"{file}{function}", *options, "--model", "smollm2"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "ready" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
