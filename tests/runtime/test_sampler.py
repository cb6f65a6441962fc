"""From logits to tokens, against definitions in numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.sampler import Sampler, score
from sgl_mlx.runtime.scheduler.plan import Place, Row

PROBABILITIES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
LOGITS = np.log(PROBABILITIES)
DRAWS = 4000
ENDS = frozenset({0})


def row(
    seed: int = 0, output: tuple[int, ...] = (), prompt: tuple[int, ...] = (), **params: Any
) -> Row:
    return Row(
        id=f"r{seed}",
        tokens=(0,),
        prefix=(),
        slots=(1,),
        position=0,
        sample=True,
        params=SamplingParams.of(params),
        seed=seed,
        output=output,
        history=prompt + output,
    )


def sample(rows: list[Row], logits: Any, step: int = 0) -> list[int]:
    logits = np.broadcast_to(logits, (len(rows), np.shape(logits)[-1])).astype(np.float32)
    sampled = Sampler(rows, ENDS, logits.shape[-1]).sample(mx.array(logits), step)
    tokens, _ = sampled.wait()
    return [token for r in rows for token in tokens[r.id]]


def counts(logits: Any = LOGITS, **params: Any) -> Counter[int]:
    """How often each token comes in many draws with seeds of their own."""
    return Counter(sample([row(seed, **params) for seed in range(DRAWS)], logits))


def assert_distributed(found: Counter[int], expected: Any) -> None:
    """Pearson's chi-square below its 99.9 % point for at most five degrees of freedom."""
    expected = expected / expected.sum()
    statistic = sum(
        (found[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in enumerate(expected) if p > 0
    )
    assert statistic < 20.5
    assert all(expected[token] > 0 for token in found)


# -- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_a_temperature(temperature: float) -> None:
    assert_distributed(counts(temperature=temperature), PROBABILITIES ** (1 / temperature))


def test_top_k_keeps_the_likeliest_and_their_proportions() -> None:
    assert_distributed(counts(top_k=3), PROBABILITIES * [1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(("top_p", "kept"), [(0.39, 1), (0.41, 2), (0.64, 2), (0.66, 3), (1.0, 6)])
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p: float, kept: int) -> None:
    assert_distributed(counts(top_p=top_p), PROBABILITIES * (np.arange(6) < kept))


def test_min_p_drops_what_is_unlikely_beside_the_likeliest() -> None:
    assert_distributed(counts(min_p=0.3), PROBABILITIES * (PROBABILITIES >= 0.12))


def test_filters_all_look_at_the_whole_distribution() -> None:
    # min_p alone would leave 0.65 of the mass, of which top_p = 0.6 would keep one token
    assert_distributed(counts(top_p=0.6, min_p=0.5), PROBABILITIES * (np.arange(6) < 2))


def test_likeliest_tokens_are_found_wherever_they_stand() -> None:
    order = [3, 0, 5, 1, 4, 2]
    found = counts(LOGITS[order], top_k=2)
    assert set(found) == {order.index(0), order.index(1)}


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1e-5}, {"top_k": 1}])
def test_greedy_takes_the_likeliest(params: dict[str, Any]) -> None:
    assert counts(LOGITS[::-1], **params) == {5: DRAWS}


def test_a_greedy_row_and_a_hot_one_do_not_disturb_each_other() -> None:
    rows = [row(seed, temperature=0 if seed % 2 else 1.5) for seed in range(400)]
    found = sample(rows, LOGITS)
    assert set(found[1::2]) == {0}
    assert found[::2] == sample(rows[::2], LOGITS)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=40), st.integers(0, 2**62))
@settings(max_examples=100, deadline=None)
def test_what_is_drawn_has_a_probability(logits: list[float], seed: int) -> None:
    masked = [-np.inf if i % 3 == 1 else x for i, x in enumerate(logits)]
    [token] = sample([row(seed, temperature=3.0, top_p=0.99)], np.array(masked))
    assert np.isfinite(masked[token])


# -- seeds ------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_and_place_in_the_output_alone() -> None:
    alone = [sample([row(7, output=(1,) * n)], LOGITS)[0] for n in range(30)]
    mates = [row(seed, temperature=2.0, top_p=0.5) for seed in range(10, 15)]
    assert [sample([*mates, row(7, output=(1,) * n)], LOGITS)[-1] for n in range(30)] == alone
    assert [sample([row(7)], LOGITS, step=n)[0] for n in range(30)] == alone
    assert len(set(alone)) > 1


def test_draws_at_successive_places_are_independent() -> None:
    rows = [row(seed) for seed in range(DRAWS)]
    first, second = sample(rows, LOGITS), sample(rows, LOGITS, step=1)
    after_zero = Counter(b for a, b in zip(first, second, strict=True) if a == 0)
    share = after_zero[0] / after_zero.total()
    assert abs(share - PROBABILITIES[0]) < 0.05


# -- penalties --------------------------------------------------------------------------------


def penalised(logits: Any, r: Row) -> Any:
    """The definition, a token at a time."""
    p, found = r.params, np.array(logits, np.float64)
    for token in range(len(found)):
        if p.repetition_penalty != 1 and token in r.history:
            by = p.repetition_penalty
            found[token] = found[token] / by if found[token] > 0 else found[token] * by
        times = r.output.count(token)
        found[token] -= p.frequency_penalty * times + p.presence_penalty * (times > 0)
    return found


penalties = st.fixed_dictionaries(
    {
        "frequency_penalty": st.sampled_from([0.0, 0.7, -1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.9, -0.4]),
        "repetition_penalty": st.sampled_from([1.0, 1.8, 0.6]),
    }
)
texts = st.lists(st.integers(0, 5), max_size=6).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts, penalties), min_size=1, max_size=3), st.integers(0, 99))
def test_penalties_are_as_defined_step_after_step(
    given_rows: list[tuple[Any, Any, Any]], seed: int
) -> None:
    rows = [
        row(i, output, prompt, temperature=0, **params)
        for i, (output, prompt, params) in enumerate(given_rows)
    ]
    sampler, draw = Sampler(rows, frozenset(), 6), np.random.default_rng(seed)
    outputs = [list(r.output) for r in rows]
    for step in range(4):
        logits = draw.normal(0, 2, (len(rows), 6)).astype(np.float32)
        found, _ = sampler.sample(mx.array(logits), step).wait()
        for i, r in enumerate(rows):
            prompt, params = given_rows[i][1], r.params
            now = row(
                i, tuple(outputs[i]), prompt, **{k: getattr(params, k) for k in given_rows[i][2]}
            )
            right = penalised(logits[i], now)
            assert right[found[r.id][0]] >= right.max() - 1e-4
            outputs[i] += found[r.id]


# -- bias -------------------------------------------------------------------------------------


def test_a_bias_moves_the_tokens_of_its_own_row_alone() -> None:
    steered = row(0, temperature=0, logit_bias={"5": 100, 4: 20.5, 99: 7})  # 99 is no token
    assert sample([row(1, temperature=0), steered], LOGITS) == [0, 5]


def test_a_bias_shifts_the_distribution_by_its_exponential() -> None:
    bias = np.array([0, 1, 0, -1, 0, 0.5])
    found = counts(logit_bias=dict(enumerate(bias)))
    assert_distributed(found, PROBABILITIES * np.exp(bias))


def test_reported_log_probabilities_are_without_the_bias() -> None:
    biased = row(3, temperature=0, logit_bias={2: 50}, return_logprob=True)
    _, scores = Sampler([biased], ENDS, 6).sample(mx.array([LOGITS.tolist()]), 0).wait()
    [(logprob, token)] = scores["r3"].tokens
    assert (token, logprob) == (2, pytest.approx(LOGITS[2], abs=1e-6))


# -- ends -------------------------------------------------------------------------------------


def test_no_end_comes_before_min_new_tokens() -> None:
    params = {"temperature": 0, "min_new_tokens": 3, "max_new_tokens": 9, "stop_token_ids": [1]}
    found = [sample([row(0, **params)], LOGITS, step=n)[0] for n in range(5)]
    assert found == [2, 2, 2, 0, 0]  # 0 is the model's end, 1 the request's


def test_a_token_forbidden_for_one_row_is_free_for_the_next() -> None:
    rows = [row(0, temperature=0, min_new_tokens=3, max_new_tokens=9), row(1, temperature=0)]
    assert sample(rows, LOGITS) == [1, 0]


# -- constraints --------------------------------------------------------------------------------


class Table:
    """A `plan.Lookup` of fixed masks, given as the allowed tokens, that notes what is asked."""

    def __init__(self, **allowed: set[int]) -> None:
        self._masks = {n: bytes([sum(1 << t for t in tokens)]) for n, tokens in allowed.items()}
        self.asked: list[set[str]] = []

    def masks(self, places: Collection[Place]) -> dict[Place, bytes]:
        self.asked.append({name for name, _ in places})
        return {(name, at): self._masks[name] for name, at in places if name in self._masks}

    def image(self, picture: str) -> Any:
        raise AssertionError("no picture was named")


def constrained(seed: int, constraint: str | None, **params: Any) -> Row:
    return replace(row(seed, temperature=0, **params), constraint=constraint)


def sample_with(table: Table, rows: list[Row], **live: Any) -> list[int]:
    sampler = Sampler(rows, ENDS, 6, table)
    found, _ = sampler.sample(mx.array([LOGITS.tolist()] * len(rows)), 0, **live).wait()
    return [token for r in rows for token in found[r.id]]


def test_a_constraint_allows_its_own_row_what_its_mask_has() -> None:
    table = Table(a={3, 5}, b={4})
    rows = [constrained(0, "a"), constrained(1, None), constrained(2, "b")]
    assert sample_with(table, rows) == [3, 0, 4]
    assert table.asked == [{"a", "b"}]


def test_a_constraint_without_a_mask_allows_everything_but_an_early_end() -> None:
    late = {"min_new_tokens": 2, "max_new_tokens": 5}
    rows = [constrained(0, "gone"), constrained(1, "gone too", **late)]
    assert sample_with(Table(), rows) == [0, 1]


def test_an_end_that_comes_too_early_is_left_out_unless_nothing_else_is_allowed() -> None:
    late = {"min_new_tokens": 2, "max_new_tokens": 5}
    rows = [constrained(0, "a", **late), constrained(1, "end", **late)]
    assert sample_with(Table(a={0, 5}, end={0}), rows) == [5, 0]


def test_the_constraints_of_rows_that_ended_are_not_asked() -> None:
    table = Table(a={3}, b={4})
    rows = [constrained(0, "a"), constrained(1, "b")]
    assert sample_with(table, rows, live={"r1"})[1] == 4
    assert table.asked == [{"b"}]


# -- scores -----------------------------------------------------------------------------------


def test_scores_are_of_the_model_whatever_temperature_and_penalties_do() -> None:
    asked = {"return_logprob": True, "top_logprobs_num": 3}
    hot = row(3, (1, 1), temperature=2.5, frequency_penalty=1.5, top_k=4, **asked)
    _, scores = Sampler([row(9), hot], ENDS, 6).sample(mx.array([LOGITS.tolist()] * 2), 0).wait()
    assert list(scores) == ["r3"]
    [(logprob, token)] = scores["r3"].tokens
    assert logprob == pytest.approx(LOGITS[token], abs=1e-6)
    [top] = scores["r3"].top
    assert [t for _, t in top] == [0, 1, 2]
    np.testing.assert_allclose([p for p, _ in top], LOGITS[:3], atol=1e-6)


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    found = score(mx.array([LOGITS.tolist()]), mx.array([4]), 99)
    [top] = found.rows([4], 0, 1, 99).top
    assert [t for _, t in top] == list(range(6))
