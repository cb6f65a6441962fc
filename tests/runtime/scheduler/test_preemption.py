"""A pool too small for all requests: some make way, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_mlx.runtime.engine import Engine
from tests.runtime.checks import assert_holds_nothing


def answers(engine: Engine, **params: Any) -> list[list[int]]:
    prompts = [[5 + i, *range(20, 35), 40 + i] for i in range(6)]
    each = [{"max_new_tokens": 40, "ignore_eos": True, "seed": i, **params} for i in range(6)]
    return [a["output_ids"] for a in engine.generate(input_ids=prompts, sampling_params=each)]


@pytest.mark.parametrize(
    "params",
    [{"temperature": 0}, {"temperature": 1.3}, {"temperature": 0.8, "frequency_penalty": 1.0}],
    ids=["greedy", "sampled", "penalised"],
)
def test_requests_that_had_to_make_way_answer_as_in_a_large_pool(
    make_engine: Callable[..., Engine], params: dict[str, Any]
) -> None:
    small = make_engine(max_total_tokens=130)
    assert answers(small, **params) == answers(make_engine(), **params)
    assert small.get_server_info()["stats"]["preemptions"] > 0
    assert_holds_nothing(small)


def test_one_at_a_time_gives_the_same_answers(make_engine: Callable[..., Engine]) -> None:
    alone = answers(make_engine(max_running_requests=1), temperature=1.3)
    assert alone == answers(make_engine(), temperature=1.3)


def test_logprobs_outlive_making_way(make_engine: Callable[..., Engine]) -> None:
    def scored(engine: Engine) -> list[list[float]]:
        prompts = [[5 + i] * 15 for i in range(6)]
        asked = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 0}
        found = engine.generate(
            input_ids=prompts, return_logprob=True, logprob_start_len=0, **asked
        )
        rows = [a["meta_info"] for a in found]
        return [
            [p for p, *_ in [*m["input_token_logprobs"][1:], *m["output_token_logprobs"]]]
            for m in rows
        ]

    small = make_engine(max_total_tokens=120)
    for found, right in zip(scored(small), scored(make_engine()), strict=True):
        assert found == pytest.approx(right, abs=1e-4)
    assert small.get_server_info()["stats"]["preemptions"] > 0
