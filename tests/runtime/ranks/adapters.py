"""Engines with and without an adapter, side by side on one model.

`python -m tests.runtime.ranks.adapters FILE CASES` writes what each of the cases, a list of
dictionaries in JSON, answered to a file. A case has a model, an adapter and the engines' options.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from sgl_mlx.core import Completion, SamplingParams
from sgl_mlx.errors import SglError
from sgl_mlx.runtime.engine import Engine

PROMPTS = [[5 + i, *range(20, 30 + 7 * i)] for i in range(3)]
GREEDY = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True)
LONG = GREEDY.override(max_new_tokens=40)
LACKING = "lacking"
"""An adapter, by a relative path, that only one rank has."""

Tokens = list[list[int]]


def tokens(futures: list[Future[tuple[Completion, ...]]]) -> Tokens:
    return [list(future.result(600)[0].token_ids) for future in futures]


def answers(model: str, adapter: str, **options: Any) -> dict[str, Tokens]:
    """Ask the model, open it with an adapter meanwhile, ask both at once, and the model again."""
    options = {"max_total_tokens": 400, "chunked_prefill_size": 16, "speculate": "off"} | options
    with Engine(model, **options) as base:
        running = [base.submit(prompt, LONG) for prompt in PROMPTS]
        with Engine(model, adapter=adapter, **options) as adapted:
            mine = [adapted.submit(prompt, GREEDY) for prompt in PROMPTS]
            beside = [base.submit(prompt[::-1], GREEDY) for prompt in PROMPTS]
            found = {"adapted": tokens(mine), "beside": tokens(beside), "long": tokens(running)}
        return found | {"after": tokens([base.submit(prompt, GREEDY) for prompt in PROMPTS])}


def refusals(model: str, other: str, **options: Any) -> list[str]:
    """Return the errors of what several ranks cannot do, while an engine is open and stays so."""
    options = {"max_total_tokens": 400, "speculate": "off"} | options

    def error(path: str, **more: Any) -> str:
        try:
            Engine(path, **options, **more).shutdown()
        except SglError as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    with Engine(model, **options) as engine:
        found = [error(model, adapter=LACKING), error(other)]
        try:
            engine.run_on_model(lambda module: module)
        except SglError as refused:
            found.append(f"{type(refused).__name__}: {refused}")
        assert engine.run_on_thread(lambda: len(tokens([]))) == 0
        assert tokens([engine.submit(PROMPTS[0], GREEDY)])[0]
    return found


def main(file: str, given: str) -> None:
    """Write one line of JSON for each case, and one for what is refused."""
    import mlx.core as mx

    mx.disable_compile()  # on a CPU it calls a C++ compiler for every shape
    cases = json.loads(given)
    with Path(file).open("w") as out:
        for case in cases:
            out.write(json.dumps(answers(**case)) + "\n")
        refused = refusals(cases[0]["model"], cases[1]["model"])
        out.write(json.dumps({"refused": refused}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
