"""Requests without end: `python -m tests.runtime.ranks.waiting MODEL [FILE]` says how they ended.

If a file is named, the model's `work.answers` are written there first. It prints "running" once all
requests generate. Then it would wait for ever, whatever happens to them.
"""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from pathlib import Path

from sgl_mlx.core import SamplingParams, StreamEvent
from sgl_mlx.runtime.engine import Engine
from tests.runtime.ranks.work import run

REQUESTS = 3


def say(line: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(model: str, file: str = "") -> None:
    """Ask, wait for all answers, print one line of JSON for each, and never end."""
    import mlx.core as mx

    mx.disable_compile()
    if file:
        Path(file).write_text(json.dumps(run(model)))
    engine = Engine(model, max_total_tokens=4000, speculate="off")
    endless = SamplingParams(max_new_tokens=450, temperature=0, ignore_eos=True)
    begun = [threading.Event() for _ in range(REQUESTS)]

    def started(event: threading.Event, _: StreamEvent) -> None:
        event.set()

    futures = [
        engine.submit([5 + i, 9, 11], endless, partial(started, event))
        for i, event in enumerate(begun)
    ]
    for event in begun:
        event.wait()
    say("running")
    for future in futures:
        error = future.exception()
        say(json.dumps({"error": f"{type(error).__name__}: {error}"}))
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
