"""A process that is stopped for longer than the watchdog waits goes on as if nothing had been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.engine import Engine

PROMPT = [70, 71, 72]
LIMIT = 1.0
STOPPED = 2.5
"""Seconds; longer than the limit of steps that the engine has taken before."""
ENGINE = """
import json, sys
from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.engine import Engine

asked = SamplingParams(temperature=0, max_new_tokens=100, ignore_eos=True)
with Engine(sys.argv[1], max_total_tokens=500, watchdog_seconds=float(sys.argv[2])) as engine:
    while True:
        [answer] = engine.submit(json.loads(sys.argv[3]), asked).result()
        print(json.dumps([answer.token_ids, engine.failure]), flush=True)
"""


def test_a_stopped_process_goes_on(toy_folder: Path) -> None:
    asked = SamplingParams(temperature=0, max_new_tokens=100, ignore_eos=True)
    with Engine(str(toy_folder), max_total_tokens=500) as engine:
        right = list(engine.submit(PROMPT, asked).result()[0].token_ids)
    command = [sys.executable, "-c", ENGINE, str(toy_folder), str(LIMIT), json.dumps(PROMPT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline()) == [right, None]
            process.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED)  # the fault itself, not a wait for something
            process.send_signal(signal.SIGCONT)
        assert json.loads(process.stdout.readline()) == [right, None]
        process.terminate()
