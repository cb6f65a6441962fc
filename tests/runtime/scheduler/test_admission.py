"""A burst over one prefix computes it once, and no policy starves a sequence."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.policy import POLICIES
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Picture, Sequence
from tests.runtime.fakes import FakeRunner, drive
from tests.runtime.truth import Fork, Tokens, make_sequence

UNBOUNDED = 1_000_000
"""A step that takes whatever there is."""


def burst(prompts: list[Tokens], limits: SchedulerLimits, new: int = 3) -> Scheduler:
    """Add prompts at once to an empty engine with room for all, and run them to their end."""
    cache = PrefixCache(2 * sum(map(len, prompts)) + 1000)
    scheduler, runner = Scheduler(cache, limits), FakeRunner(cache)
    ids = itertools.count()
    for prompt in prompts:
        s = make_sequence(ids, prompt, new)
        runner.know(s)
        scheduler.add(s)
    drive(scheduler, runner)
    return scheduler


def distinct_tokens(prompts: list[Tokens]) -> int:
    return len({hash(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))})


def fresh(counter: itertools.count[int], length: int) -> Tokens:
    return tuple(itertools.islice(counter, length))


def one_prefix(count: int) -> list[Tokens]:
    numbers = itertools.count()
    prefix = fresh(numbers, 800)
    return [prefix + fresh(numbers, 20) for _ in range(count)]


def nested_prefixes() -> list[Tokens]:
    """A tree of depth 3, its leaves in an order that mixes the branches."""
    numbers = itertools.count()
    prompts: list[list[Tokens]] = []
    root = fresh(numbers, 300)
    for _ in range(3):
        branch = root + fresh(numbers, 100)
        for _ in range(3):
            leaf = branch + fresh(numbers, 50)
            prompts.append([leaf + fresh(numbers, 16) for _ in range(2)])
    return [prompt for pair in zip(*prompts, strict=True) for prompt in pair]


@pytest.mark.parametrize("step_tokens", [64, 256, 512, UNBOUNDED])
@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("prompts", [one_prefix(8), nested_prefixes()], ids=["one", "nested"])
def test_a_burst_over_uncached_prefixes_computes_them_once(
    prompts: list[Tokens], policy: str, step_tokens: int
) -> None:
    counters = burst(prompts, SchedulerLimits(policy=policy, step_tokens=step_tokens)).counters
    unique = distinct_tokens(prompts)
    assert unique <= counters.computed_tokens <= 1.02 * unique
    assert counters.prompt_tokens == sum(map(len, prompts))
    assert counters.cached_tokens == counters.prompt_tokens - counters.computed_tokens


def test_ageing_does_not_give_up_sharing() -> None:
    prompts = nested_prefixes()
    limits = SchedulerLimits(max_passes=1, step_tokens=UNBOUNDED)
    assert burst(prompts, limits).counters.computed_tokens <= 1.02 * distinct_tokens(prompts)


def test_without_in_flight_sharing_a_burst_computes_its_prefix_every_time() -> None:
    prompts = one_prefix(8)
    limits = SchedulerLimits(step_tokens=UNBOUNDED, in_flight_sharing=False)
    assert burst(prompts, limits).counters.computed_tokens == 8 * 820


def test_less_than_the_threshold_is_not_waited_for() -> None:
    prompts = [(1, 2, 3, 4, 5 + i) for i in range(3)]
    for threshold, computed in ((4, 4 + 3), (5, 3 * 5)):
        limits = SchedulerLimits(share_threshold=threshold)
        assert burst(prompts, limits).counters.computed_tokens == computed


def test_waiting_for_one_prefix_does_not_hold_up_another() -> None:
    shared, other = tuple(range(40)), tuple(range(100, 140))
    cache = PrefixCache(1000)
    scheduler = Scheduler(cache)
    added = [make_sequence(itertools.count(i), p, 2) for i, p in enumerate([shared, shared, other])]
    for s in added:
        scheduler.add(s)
    scheduler.next()
    assert scheduler.running == [added[0], added[2]]


# -- pictures -------------------------------------------------------------------------------------


class _Shown(NamedTuple):
    content_hash: bytes
    tokens: int
    grid: tuple[int, int] | None = None
    times: tuple[int, ...] = (0,)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_of_a_picture_all_comes_from_the_cache_or_nothing(data: st.DataObject) -> None:
    """Requests end anywhere, also in the midst of a picture's chunks, and leave what they have."""
    cache = PrefixCache(400)
    limits = SchedulerLimits(step_tokens=data.draw(st.integers(1, 9)), share_threshold=3)
    scheduler, runner = Scheduler(cache, limits), FakeRunner(cache)
    ids = itertools.count()
    cut_before = data.draw(st.integers(0, 12))
    for _ in range(data.draw(st.integers(2, 6))):
        before = tuple(data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
        number, after = data.draw(st.integers(0, 1)), tuple(data.draw(st.lists(st.just(3))))
        picture = Picture(len(before), _Shown(bytes([number]) * 32, 7))
        s = make_sequence(ids, (*before, *[8 + number] * 7, *after), 2)
        s.pictures = (picture,)
        runner.know(s)
        scheduler.add(s)
        for turn in range(data.draw(st.integers(0, 15))):
            plan = scheduler.next()
            if plan is None:
                break
            scheduler.commit(plan, runner.run(plan))
            if turn == cut_before:
                scheduler.abort(s)
        assert s.cached_tokens is None or not picture.start < s.cached_tokens < picture.end
    scheduler.check()


# -- ageing ---------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """A request that arrives."""

    prompt: Tokens
    priority: int = 0


prompts = st.lists(st.integers(1, 2), min_size=1, max_size=8).map(tuple)
asks = st.builds(Ask, prompts, st.sampled_from([0, 0, 0, 1, -2]))
arrivals = st.lists(st.lists(asks, max_size=4), min_size=1, max_size=12)


def passes(stream: list[list[Ask]], limits: SchedulerLimits, capacity: int) -> list[int]:
    """How many later arrivals of its priority started before each sequence.

    The lists of `stream` arrive turn by turn.
    """
    cache = PrefixCache(capacity)
    scheduler, runner = Scheduler(cache, limits), FakeRunner(cache)
    ids = itertools.count()
    added: list[Sequence] = []
    started: list[Sequence] = []
    for turn in itertools.count():
        for ask in stream[turn] if turn < len(stream) else ():
            s = make_sequence(ids, ask.prompt, 2)
            s.priority = ask.priority
            runner.know(s)
            scheduler.add(s)
            added.append(s)
        plan = scheduler.next()
        started += [s for s in added if s.cached_tokens is not None and s not in started]
        if plan is not None:
            scheduler.commit(plan, runner.run(plan))
        elif turn >= len(stream):
            break
    assert len(started) == len(added)
    return [
        sum(a.arrival > b.arrival and a.priority == b.priority for a in started[:i])
        for i, b in enumerate(started)
    ]


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    stream=arrivals,
    max_passes=st.integers(0, 4),
    max_running=st.integers(1, 3),
    capacity=st.integers(12, 40),
)
def test_at_most_max_passes_later_arrivals_of_its_priority_start_before_a_sequence(
    policy: str, stream: list[list[Ask]], max_passes: int, max_running: int, capacity: int
) -> None:
    limits = SchedulerLimits(
        policy=policy, max_passes=max_passes, max_running=max_running, decode_margin=0
    )
    assert max(passes(stream, limits, capacity), default=0) <= max_passes


@pytest.mark.parametrize("max_passes", [0, 1, 5, 100])
def test_a_stream_of_better_cached_arrivals_passes_a_sequence_exactly_max_passes_times(
    max_passes: int,
) -> None:
    hit, miss = Ask((1,) * 8), Ask((2,) * 8)
    stream = [[hit, hit, miss], *[[hit]] * 40]
    limits = SchedulerLimits(policy="lpm", max_passes=max_passes, max_running=1)
    assert max(passes(stream, limits, 100)) == min(max_passes, 40)


# -- priority -------------------------------------------------------------------------------------


def starts(asks: list[Ask], **limits: Any) -> list[int]:
    """Indices of requests that wait together, in the order in which they start."""
    cache = PrefixCache(1000)
    scheduler, runner = Scheduler(cache, SchedulerLimits(**limits)), FakeRunner(cache)
    added = [make_sequence(itertools.count(i), ask.prompt, 2) for i, ask in enumerate(asks)]
    order: list[int] = []
    for s, ask in zip(added, asks, strict=True):
        s.priority = ask.priority
        runner.know(s)
        scheduler.add(s)
    while (plan := scheduler.next()) is not None:
        order += [i for i, s in enumerate(added) if s.holding is not None and i not in order]
        scheduler.commit(plan, runner.run(plan))
    return order


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(asks, min_size=1, max_size=9), st.integers(0, 2))
def test_a_higher_priority_starts_first_whatever_the_policy_and_age(
    policy: str, asks: list[Ask], max_passes: int
) -> None:
    order = starts(asks, policy=policy, max_running=1, max_passes=max_passes)
    started = [asks[i].priority for i in order]
    assert started == sorted(started, reverse=True)


def test_a_high_priority_that_comes_late_goes_before_an_aged_low_one() -> None:
    cache = PrefixCache(1000)
    scheduler = Scheduler(cache, SchedulerLimits(max_running=1, max_passes=1))
    runner, ids = FakeRunner(cache), itertools.count()

    def add(token: int, priority: int = 0) -> Sequence:
        s = make_sequence(ids, (token,) * 8, 2)
        s.priority = priority
        runner.know(s)
        scheduler.add(s)
        return s

    def run_until_started(s: Sequence) -> None:
        while s.cached_tokens is None:
            plan = scheduler.next()
            assert plan is not None
            scheduler.commit(plan, runner.run(plan))

    run_until_started(add(1))
    aged, hit = add(2), add(1)
    run_until_started(hit)
    assert aged.passed_over == 1
    late = add(3, priority=1)
    run_until_started(late)
    assert aged.cached_tokens is None
    drive(scheduler, runner)


def test_being_passed_by_a_higher_priority_is_no_ageing() -> None:
    miss, hit, high = Ask((2,) * 8), Ask((1,) * 8), Ask((1,) * 8, priority=1)
    assert starts([miss, hit, high], max_running=1, max_passes=1) == [2, 1, 0]


def test_the_least_urgent_makes_way_when_slots_run_out() -> None:
    cache = PrefixCache(24)
    scheduler = Scheduler(cache, SchedulerLimits(decode_margin=0, epoch_steps=1))
    runner = FakeRunner(cache)
    low, high = (make_sequence(itertools.count(i), (1 + i,) * 8, 12) for i in range(2))
    high.priority = 1
    for s in (low, high):  # by age alone the high one, which came last, would make way
        runner.know(s)
        scheduler.add(s)
    while scheduler.counters.preemptions == 0:
        plan = scheduler.next()
        assert plan is not None
        scheduler.commit(plan, runner.run(plan))
    assert scheduler.running == [high]
    assert low in scheduler.waiting


def test_branches_are_as_urgent_as_what_they_are_computed_for() -> None:
    cache = PrefixCache(100)
    scheduler, runner = Scheduler(cache, SchedulerLimits(max_running=1)), FakeRunner(cache)
    plain = make_sequence(itertools.count(), (1, 2, 3), 2)
    urgent = make_sequence(itertools.count(1), (3,), 2, fork=Fork((1,), ((2,), (3,))))
    urgent.priority = 5
    for s in (plain, urgent):
        runner.know(s)
        scheduler.add(s)
    while urgent.finish_reason is None:
        assert plain.holding is None
        plan = scheduler.next()
        assert plan is not None
        scheduler.commit(plan, runner.run(plan))
    drive(scheduler, runner)
    assert plain.finish_reason is not None
