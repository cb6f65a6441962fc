"""Engines whose KV pool has 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sgl_mlx as sgl
from sgl_mlx.runtime.engine import Engine
from tests.embedded import open_embedded
from tests.runtime.checks import assert_holds_nothing

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ("architecture.md", "runtime.md", "language.md")
TOKENS, CHUNK = 2000, 64

figures = logging.getLogger("figures")
"""Figures measured; `pytest --log-cli-level=INFO` shows it."""


@pytest.fixture(scope="module")
def quantized() -> Iterator[Engine]:
    """SmolLM2; all but the last `CHUNK` keys of a prompt's token are read from the pool."""
    options = {"max_total_tokens": 6000, "kv_bits": 8, "chunked_prefill_size": CHUNK}
    with open_embedded(**options) as engine:
        yield engine


def logprobs(engine: Engine, ids: list[int]) -> Any:
    engine.flush_cache()
    asked: dict[str, Any] = {"return_logprob": True, "logprob_start_len": 0}
    answer = engine.generate(input_ids=ids, sampling_params={"max_new_tokens": 0}, **asked)
    return np.array([p for p, *_ in answer["meta_info"]["input_token_logprobs"][1:]])


def test_perplexity_of_2000_tokens_stays_within_half_a_percent(
    smollm2: Engine, quantized: Engine
) -> None:
    text = "\n".join((DOCS / page).read_text("utf-8") for page in PAGES)
    ids = smollm2.tokenizer.encode(text)[:TOKENS]
    assert len(ids) == TOKENS
    plain, rounded = logprobs(smollm2, ids), logprobs(quantized, ids)
    right, found = np.exp(-plain.mean()), np.exp(-rounded.mean())
    change = float(found / right - 1)
    figures.info("perplexity %.4f plain, %.4f in 8 bits: %+.3f%%", right, found, 100 * change)
    assert abs(change) < 0.005
    apart = np.abs(plain - rounded)
    assert apart[: CHUNK - 1].max() < 1e-4  # the first chunk reads nothing from the pool
    assert apart[CHUNK:].mean() > 1e-4  # all others do


def test_greedy_text_of_a_program_is_that_of_the_plain_pool(
    smollm2: Engine, quantized: Engine
) -> None:
    @sgl.function
    def trip(s: Any) -> None:
        s += "Two cities of Europe.\n"
        branches = s.fork(2)
        for branch, country in zip(branches, ["France", "Italy"], strict=True):
            branch += f"The capital of {country} is" + sgl.gen("city", max_tokens=2, temperature=0)
        s += " and".join(branch["city"] for branch in branches)

    texts = [trip.run(backend=engine).text() for engine in (smollm2, quantized)]
    assert texts[0] == texts[1]
    assert "Paris" in texts[1]
    assert "Rome" in texts[1]


def answers(engine: Engine) -> list[list[int]]:
    prompts = [[5 + i, *range(20, 35), 40 + i] for i in range(6)]
    params = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 0}
    return [a["output_ids"] for a in engine.generate(input_ids=prompts, sampling_params=params)]


def test_a_prompt_found_in_the_cache_is_answered_from_it(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(kv_bits=8)
    ids = list(range(20, 120))
    asked = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    _, again, third = (engine.generate(input_ids=ids, sampling_params=asked) for _ in range(3))
    assert again["meta_info"]["cached_tokens"] == len(ids) - 1
    assert again["output_ids"] == third["output_ids"]
    assert_holds_nothing(engine)


def test_requests_that_make_way_for_others_are_all_answered(
    make_engine: Callable[..., Engine],
) -> None:
    small = make_engine(kv_bits=8, max_total_tokens=130)
    assert [len(ids) for ids in answers(small)] == [40] * 6
    assert small.get_server_info()["stats"]["preemptions"] > 0
    assert_holds_nothing(small)
