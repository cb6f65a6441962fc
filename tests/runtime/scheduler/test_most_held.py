"""Running sequences hold no more slots together than decoding may copy out of the pool."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import FakeRunner, drive
from tests.runtime.truth import Tokens, make_sequence, recorder

NEW = 3
MARGIN = SchedulerLimits().decode_margin


def opened(prompts: list[Tokens], most_held: int | None) -> tuple[Scheduler, list[Sequence], int]:
    """The prompts, run to their end, and the most slots in use by several of them at a start."""
    cache = PrefixCache(10_000)
    limits = SchedulerLimits(most_held=most_held, in_flight_sharing=False)
    scheduler, runner = Scheduler(cache, limits), FakeRunner(cache)
    ids, sequences, most = itertools.count(), [], 0
    for prompt in prompts:
        s = make_sequence(ids, prompt, NEW)
        runner.know(s)
        scheduler.add(s)
        sequences.append(s)
    while (plan := scheduler.next()) is not None:
        if len(scheduler.running) > 1:
            most = max(most, cache.in_use)
        scheduler.commit(plan, runner.run(plan))
    return scheduler, sequences, most


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 900))
def test_several_stay_within_the_bound_and_all_finish(lengths: list[int], most_held: int) -> None:
    firsts = itertools.accumulate(lengths, initial=1)
    prompts = [tuple(range(n, n + count)) for n, count in zip(firsts, lengths, strict=False)]
    scheduler, sequences, most = opened(prompts, most_held)
    assert most <= most_held
    assert all(len(recorder(s).tokens) == NEW for s in sequences)
    assert scheduler.counters.preemptions == 0


def test_what_several_share_is_counted_once() -> None:
    shared = tuple(range(1, 400))
    prompts = [shared, *((*shared, 1000 + i) for i in range(6))]
    cache = PrefixCache(10_000)
    limits = SchedulerLimits(most_held=399 + 7 * (MARGIN + 4))
    scheduler, runner = Scheduler(cache, limits), FakeRunner(cache)
    ids = itertools.count()
    together = 0
    for prompt in prompts:
        s = make_sequence(ids, prompt, 0 if prompt == shared else NEW)
        runner.know(s)
        scheduler.add(s)
        if prompt == shared:
            drive(scheduler, runner)
    while (plan := scheduler.next()) is not None:
        together = max(together, len(scheduler.running))
        scheduler.commit(plan, runner.run(plan))
    assert together == 6


def test_without_a_bound_all_run_together() -> None:
    prompts = [tuple(range(n, n + 100)) for n in range(1, 500, 100)]
    assert opened(prompts, None)[2] >= 500
