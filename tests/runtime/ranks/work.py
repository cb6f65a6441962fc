"""Requests whose answers have to be the same on one process and on several ranks.

`python -m tests.runtime.ranks.work FILE OPTIONS MODEL…` answers them with each model in turn, by
engines with these options in JSON, and writes the answers to a file. Started as one of several
ranks, rank 0 writes it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.engine import Engine

PROMPTS = 21
GROWING = 6
"""Prompts before those: short ones with long answers, for which the pool is too small at once."""
SLOTS = 130
GREEDY = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)
LONG = GREEDY.override(max_new_tokens=24)


def prompts(vocabulary: int) -> list[list[int]]:
    """Prompts of uneven lengths, in families that share a prefix, as forks of a program do."""
    draw = random.Random(7)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(count)]

    stems = [tokens(length) for length in (0, 9, 23, 40)]
    return [stems[i % 4] + tokens(3 + 5 * i % 17) for i in range(PROMPTS)]


def answers(engine: Engine, vocabulary: int = 90) -> dict[str, Any]:
    """Ask everything at once, abort some of it, ask again; return tokens, and what happened."""
    asked = prompts(vocabulary)
    futures = [engine.submit([5 + i, *range(20, 34)], LONG) for i in range(GROWING)]
    doomed = [engine.submit(prompt, LONG) for prompt in asked[:3]]
    futures += [engine.submit(prompt, GREEDY) for prompt in asked]
    for future in doomed:
        future.cancel()
    drawn = SamplingParams(max_new_tokens=4, temperature=1.0, seed=3, n=2)
    futures += [engine.submit(asked[5], drawn)]
    first = [sample.token_ids for future in futures for sample in future.result(600)]
    again = [engine.submit(p, GREEDY).result(600)[0].token_ids for p in asked[:2]]
    info = engine.get_server_info()
    return {
        "tokens": [*first, *again],
        "ranks": info["ranks"],
        "preempted": info["stats"]["preemptions"],
    }


def run(model: str, **options: Any) -> dict[str, Any]:
    """Open a model and return its `answers`."""
    options = {"max_total_tokens": SLOTS, "chunked_prefill_size": 64, "speculate": "off"} | options
    with Engine(model, **options) as engine:
        return answers(engine)


def main(file: str, models: Sequence[str], **options: Any) -> None:
    """Write each model's answers as one line of JSON."""
    import mlx.core as mx

    mx.disable_compile()  # on a CPU it calls a C++ compiler for every shape
    with Path(file).open("w") as out:
        for model in models:
            out.write(json.dumps(run(model, **options)) + "\n")


if __name__ == "__main__":
    file, options, *models = sys.argv[1:]
    main(file, models, **json.loads(options))
