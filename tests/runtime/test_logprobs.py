"""Log-probabilities of prompt and output, against one forward pass of mlx-lm's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sgl_mlx.runtime.engine import Engine
from tests.runtime import plain

IDS = np.random.default_rng(3).integers(3, 288, 90).tolist()
OTHERS = [[5, 6, 7], [*IDS[:50], 4, 4], IDS[20:80]]
SCORED: dict[str, Any] = {"return_logprob": True, "max_new_tokens": 0, "logprob_start_len": 0}
CLOSE = {"abs": 1e-4}


def reference(engine: Engine, ids: list[int]) -> Any:
    return engine.run_on_model(lambda module: plain.logprobs(module, ids))


def assert_scored(engine: Engine, meta: dict[str, Any], ids: list[int], start: int = 0) -> None:
    """Every prompt token from `start` on has the log-probability of one plain forward pass."""
    rows = meta["input_token_logprobs"]
    assert [token for _, token, _ in rows] == ids[start:]
    expected = reference(engine, ids)
    first = max(start, 1)
    if start == 0:
        assert rows[0][0] is None  # nothing comes before it
    found = [p for p, *_ in rows[first - start :]]
    assert found == pytest.approx(
        [expected[i - 1, ids[i]] for i in range(first, len(ids))], **CLOSE
    )


def ask(engine: Engine, ids: Any, **params: Any) -> Any:
    return engine.generate(input_ids=ids, **{**SCORED, **params})


def test_every_prompt_token_is_scored_cached_or_not(toy: Engine) -> None:
    toy.flush_cache()
    for _ in range(2):
        assert_scored(toy, ask(toy, IDS)["meta_info"], IDS)


@pytest.mark.parametrize("chunk", [1, 7, 64, 89])
def test_chunks_do_not_matter(make_engine: Callable[..., Engine], chunk: int) -> None:
    engine = make_engine(chunked_prefill_size=chunk)
    assert_scored(engine, ask(engine, IDS)["meta_info"], IDS)


def test_batch_mates_do_not_matter(toy: Engine) -> None:
    toy.flush_cache()
    rows = [IDS, *OTHERS]
    for ids, answer in zip(rows, ask(toy, rows), strict=True):
        assert_scored(toy, answer["meta_info"], ids)


@pytest.mark.parametrize("start", [1, 2, 40, 88, 89])
def test_scores_begin_where_asked_and_what_is_before_comes_from_the_cache(
    toy: Engine, start: int
) -> None:
    toy.flush_cache()
    for cached in (0, start - 1):
        meta = ask(toy, IDS, logprob_start_len=start)["meta_info"]
        assert meta["cached_tokens"] == cached
        assert_scored(toy, meta, IDS, start)


@pytest.mark.parametrize("start", [None, -1, 90])
def test_no_prompt_token_is_scored_unless_asked_for(toy: Engine, start: int | None) -> None:
    meta = ask(toy, IDS, logprob_start_len=start, max_new_tokens=2)["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert len(meta["output_token_logprobs"]) == 2


def test_without_asking_there_are_no_logprobs(toy: Engine) -> None:
    assert "output_token_logprobs" not in toy.generate(input_ids=IDS, max_new_tokens=1)["meta_info"]


def test_output_tokens_are_scored_whatever_the_temperature(toy: Engine) -> None:
    params = {"max_new_tokens": 12, "temperature": 2.0, "seed": 1, "ignore_eos": True}
    alone, *_ = answers = ask(toy, [IDS, *OTHERS], **params)
    for ids, answer in zip([IDS, *OTHERS], answers, strict=True):
        rows = answer["meta_info"]["output_token_logprobs"]
        output = answer["output_ids"]
        assert [token for _, token, _ in rows] == output
        expected = reference(toy, ids + output)[len(ids) - 1 : -1]
        right = [expected[i, t] for i, t in enumerate(output)]
        assert [p for p, *_ in rows] == pytest.approx(right, **CLOSE)
    assert len(set(alone["output_ids"])) > 3


def test_the_likeliest_alternatives_come_best_first_at_every_position(toy: Engine) -> None:
    meta = ask(toy, IDS, max_new_tokens=5, temperature=0, top_logprobs_num=4)["meta_info"]
    output = [token for _, token, _ in meta["output_token_logprobs"]]
    expected = reference(toy, IDS + output)
    tops = [*meta["input_top_logprobs"][1:], *meta["output_top_logprobs"]]
    assert meta["input_top_logprobs"][0] == []
    assert len(tops) == len(IDS) + len(output) - 1
    for row, right in zip(tops, expected, strict=False):
        assert [p for p, *_ in row] == pytest.approx(np.sort(right)[::-1][:4].tolist(), **CLOSE)
        assert [right[t] for _, t, _ in row] == pytest.approx([p for p, *_ in row], **CLOSE)
    assert [row[0][1] for row in meta["output_top_logprobs"]] == output


def test_requests_that_want_more_or_fewer_alternatives_get_their_own_number(toy: Engine) -> None:
    asked = [{**SCORED, "max_new_tokens": 2, "top_logprobs_num": n} for n in (0, 2, 5)]
    answers = toy.generate(input_ids=[IDS, IDS, IDS], sampling_params=asked)
    for n, answer in zip((0, 2, 5), answers, strict=True):
        widths = {len(row) for row in answer["meta_info"]["output_top_logprobs"]}
        assert widths == ({n} if n else set())


def test_texts_of_tokens_come_when_asked_for(toy: Engine) -> None:
    meta = ask(toy, IDS[:5], return_text_in_logprobs=True)["meta_info"]
    texts = [text for *_, text in meta["input_token_logprobs"]]
    assert texts == [toy.tokenizer.token_text(token) for token in IDS[:5]]


def test_samples_of_one_prompt_are_all_scored(toy: Engine) -> None:
    answers = ask(toy, IDS, n=3, max_new_tokens=2)
    assert len(answers) == 3
    for answer in answers:
        assert_scored(toy, answer["meta_info"], IDS)
