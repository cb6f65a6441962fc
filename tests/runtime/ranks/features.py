"""Requests of every other kind: drafts, grammars, logprobs, choices, pictures, an 8-bit pool.

`python -m tests.runtime.ranks.features FILE OPTIONS TEXT_MODEL PICTURE_MODEL` writes the answers
of engines with these options in JSON to a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.core import Completion, SamplingParams, Text
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.speculation import drafting
from tests.runtime.llava import ask
from tests.runtime.speculation.costs import CHEAP, FREE_VERIFYING

GREEDY = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)
REGEX = SamplingParams(max_new_tokens=12, temperature=0, regex="[ab]{3}(cd)+", ignore_eos=True)
SCORED = GREEDY.override(
    max_new_tokens=4, return_logprob=True, logprob_start_len=0, top_logprobs_num=2
)


def of_text(engine: Engine) -> dict[str, Any]:
    """Ask for drafted, constrained and scored text."""
    drafted = [engine.submit((Text("abcabcabc" * n),), GREEDY) for n in (4, 5)]
    shaped = engine.submit((Text("Say "),), REGEX)
    scored = engine.submit((Text("some words"),), SCORED).result(600)[0].logprobs
    chosen = engine.score((Text("yes or no? "),), ["yes", "no"]).result(600)
    assert scored is not None
    return {
        "tokens": [_tokens(f.result(600)[0]) for f in (*drafted, shaped)],
        "logprobs": [t.logprob for t in (*scored.input[1:], *scored.output)],
        "choices": [t.logprob for choice in chosen.choices for t in choice.tokens],
    }


def of_pictures(engine: Engine) -> dict[str, Any]:
    """Ask about pictures, one of them twice."""
    futures = [engine.submit(ask(number), GREEDY) for number in (1, 2, 1)]
    return {"tokens": [_tokens(future.result(600)[0]) for future in futures]}


def run(text: str, pictures: str, **options: Any) -> list[dict[str, Any]]:
    """Open both models in turn, and return their answers; every draft seems to pay."""
    costs = iter(
        [FREE_VERIFYING, FREE_VERIFYING, CHEAP]
    )  # of the model, once more, and of the draft model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "kept_costs", lambda *_: next(costs))
        patch.setattr(drafting, "Pace", lambda: None)
        return _run(text, pictures, **options)


def _run(text: str, pictures: str, **options: Any) -> list[dict[str, Any]]:
    options = {"max_total_tokens": 1000, "chunked_prefill_size": 32} | options
    with Engine(text, **options) as engine:
        found = [of_text(engine)]
    with Engine(text, kv_bits=8, draft=text, **options) as engine:
        found.append(of_text(engine))
        assert engine.get_server_info()["stats"]["accepted_tokens"] > 0
    with Engine(pictures, speculate="off", **options) as engine:
        return [*found, of_pictures(engine)]


def _tokens(completion: Completion) -> list[int]:
    return list(completion.token_ids)


if __name__ == "__main__":
    import mlx.core as mx

    mx.disable_compile()  # on a CPU it calls a C++ compiler for every shape
    file, options, *models = sys.argv[1:]
    Path(file).write_text(json.dumps(run(*models, **json.loads(options))))
