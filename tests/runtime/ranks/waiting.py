"""Requests without end; each says how it ended.

`python -m tests.runtime.ranks.waiting MODEL [FILE [ADAPTER]]` prints "running" once all requests
generate. Then it would wait for ever, whatever happens to them. If a file is named, the model's
`work.answers` are written there first. With an adapter, every other request is to a second engine.
"""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from sgl_mlx.core import SamplingParams, StreamEvent
from sgl_mlx.runtime.engine import Engine
from tests.runtime.ranks.work import run

REQUESTS = 3


def say(line: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(model: str, file: str = "", adapter: str = "") -> None:
    """Ask, wait for all answers, print one line of JSON for each, and never end."""
    import mlx.core as mx

    mx.disable_compile()
    if file:
        Path(file).write_text(json.dumps(run(model)))
    kinds = [None, adapter] if adapter else [None]
    options: dict[str, Any] = {"max_total_tokens": 4000, "speculate": "off"}
    engines = [Engine(model, adapter=kind, **options) for kind in kinds]
    endless = SamplingParams(max_new_tokens=450, temperature=0, ignore_eos=True)
    begun = [threading.Event() for _ in range(REQUESTS)]

    def started(event: threading.Event, _: StreamEvent) -> None:
        event.set()

    futures = [
        engines[i % len(engines)].submit([5 + i, 9, 11], endless, partial(started, event))
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
