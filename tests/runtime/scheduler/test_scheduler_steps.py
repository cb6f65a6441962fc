"""The scheduler's plans, step by step, on examples small enough to follow."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.scheduler.plan import Decode, Extend
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import Engine
from tests.runtime.truth import Fork, family, make_sequence, recorder, run_alone


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding() -> None:
    engine = Engine(step_tokens=8)
    first = engine.add([1, 2], 20)
    engine.turn()
    second = engine.add(range(20), 2)
    while isinstance(plan := engine.turn(), Decode):
        assert plan.ids == (first.id,)
    steps = [plan, engine.turn(), engine.turn()]
    assert [[len(row.tokens) for row in step.rows] for step in steps] == [[1, 7], [1, 7], [1, 6]]
    assert len(second.output_tokens) == 1


def test_an_epoch_runs_ahead_until_something_is_admitted() -> None:
    engine = Engine(epoch_steps=10)
    first = engine.add([1, 2], 30)
    engine.turn()
    ahead = [plan.ahead for plan in (engine.turn() for _ in range(4)) if isinstance(plan, Decode)]
    assert ahead == [True] * 4
    second = engine.add([3, 1], 5)
    waited = engine.turn()  # the step that was submitted ahead is used, and is the last
    assert waited == Decode((first.id,), 10, ahead=False)
    mixed = engine.turn()
    assert isinstance(mixed, Extend)
    assert {row.id for row in mixed.rows} == {first.id, second.id}


def test_the_last_step_of_an_epoch_and_of_a_sequence_runs_nothing_ahead() -> None:
    engine = Engine(epoch_steps=3)
    engine.add([1, 2], 6)
    engine.turn()
    plans = [engine.turn() for _ in range(5)]
    assert [(p.ahead, bool(p.opening)) for p in plans if isinstance(p, Decode)] == [
        (True, True),
        (True, False),
        (False, False),
        (True, True),
        (False, False),
    ]


def test_slots_reserved_for_an_epoch_come_back_when_it_is_cut_short() -> None:
    engine = Engine(epoch_steps=32)
    s = engine.add([1, 2], 100)
    engine.turn()
    engine.turn()
    assert len(s.table) == 2 + 32
    engine.add([3, 1], 5)
    engine.turn()
    assert isinstance(engine.turn(), Extend)
    assert len(s.table) == s.computed


def test_an_epoch_is_over_when_half_of_its_rows_have_ended() -> None:
    engine = Engine(epoch_steps=32)
    for new in (3, 3, 40):
        engine.add([new], new)
    widths = []
    while not engine.scheduler.idle:
        plan = engine.turn()
        if isinstance(plan, Decode) and plan.opening:
            widths.append(len(plan.opening))
    assert widths == [3, 1, 1]


def test_the_newest_gives_way_when_the_pool_is_full_and_still_gives_its_tokens() -> None:
    engine = Engine(capacity=20, decode_margin=0)
    old, new = engine.add([1, 2, 3], 14), engine.add([2, 3, 1], 14)
    order: list[Sequence] = []
    while not engine.scheduler.idle:
        engine.turn()
        order += [s for s in (old, new) if s.finish_reason and s not in order]
    assert engine.scheduler.counters.preemptions > 0
    assert order == [old, new]
    for s in (old, new):
        assert recorder(s).tokens == run_alone(s, None).tokens


def test_a_request_larger_than_the_pool_ends_alone() -> None:
    engine = Engine(capacity=10)
    large, small = engine.add(range(11), 1), engine.add([1, 2], 3)
    engine.finish()
    assert large.finish_reason == FinishReason("abort", message=TOO_SMALL)
    assert small.finish_reason == FinishReason("length", length=3)


def test_output_that_outgrows_the_pool_is_kept_as_far_as_it_came() -> None:
    engine = Engine(capacity=10)
    s = engine.add([1, 2], 50)
    engine.finish()
    assert s.finish_reason == FinishReason("abort", message=TOO_SMALL)
    assert recorder(s).tokens == run_alone(s, None).tokens[: 10 - 2 + 1]


def test_a_branch_that_cannot_be_computed_ends_what_waits_for_it() -> None:
    engine = Engine(capacity=10)
    s = engine.add([1], 3, Fork((1, 2), ((3,), tuple(range(9)))))
    engine.finish()
    assert [m.finish_reason and m.finish_reason.type for m in family(s)] == [
        "abort",
        "length",
        "abort",
    ]
    assert recorder(s).tokens == []


def test_two_requests_whose_branches_fill_the_pool_take_turns() -> None:
    engine = Engine(capacity=14, decode_margin=0)
    forks = [Fork((i,), ((1, 2, 3), (2, 3, 1))) for i in (1, 2)]
    both = [engine.add([1, 2], 5, fork) for fork in forks]
    engine.finish()
    for s in both:
        assert recorder(s).tokens == run_alone(s, None).tokens


def test_a_reply_is_cached_for_the_next_turn_of_a_chat() -> None:
    engine = Engine()
    first = engine.add([1, 2, 3], 10)
    engine.finish()
    second = engine.add([*first.tokens, 3, 2], 2)
    engine.finish()
    assert second.cached_tokens == 3 + 10 - 1  # the last token sampled has no KV


def test_prompt_scores_are_not_given_twice_when_a_prefill_is_preempted() -> None:
    engine = Engine(capacity=16, decode_margin=0, step_tokens=4, score_tokens=2)
    s = make_sequence(itertools.count(100), tuple(range(12)), 0, logprob_start=0)
    engine.runner.know(s)
    old = engine.add([1, 2, 3], 13)
    engine.turn()
    engine.scheduler.add(s)
    engine.finish()
    assert engine.scheduler.counters.preemptions == 1
    assert recorder(s).prompt_scores == run_alone(s, 0).prompt_scores
    assert recorder(old).tokens == run_alone(old, None).tokens


def test_samples_of_one_prompt_compute_it_once_however_short_it_is() -> None:
    engine = Engine()
    rows = [engine.add([1, 2, 3], 4) for _ in range(20)]
    first = engine.turn()
    assert isinstance(first, Extend)
    assert [row.id for row in first.rows] == [rows[0].id]
    engine.finish()
    assert engine.scheduler.counters.computed_tokens == 3 + 19  # each samples from its last one
    for s in rows:
        assert recorder(s).tokens == run_alone(s, None).tokens


@pytest.mark.parametrize(("score_tokens", "top", "most"), [(8, 0, 8), (8, 3, 2), (2, 3, 1)])
def test_alternatives_of_prompt_tokens_are_scored_in_smaller_steps(
    score_tokens: int, top: int, most: int
) -> None:
    engine = Engine(score_tokens=score_tokens)
    s = make_sequence(itertools.count(100), tuple(range(20)), 0, logprob_start=0)
    s.params = replace(s.params, top_logprobs_num=top)
    beside = engine.add([1, 2, 3], 4)
    engine.runner.know(s)
    engine.scheduler.add(s)
    engine.finish()
    scored = [
        sum(len(row.targets) for row in plan.rows)
        for plan in engine.runner.plans
        if isinstance(plan, Extend)
    ]
    assert max(scored) == most
    assert recorder(s).prompt_scores == run_alone(s, 0).prompt_scores
    assert recorder(beside).tokens == run_alone(beside, None).tokens
