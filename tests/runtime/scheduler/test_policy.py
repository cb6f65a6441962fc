"""Orders of admission, on queues small enough to order by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import RadixTree
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.policy import policy_named
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from tests.runtime.fakes import FakeRunner, drive
from tests.runtime.truth import make_sequence

Tokens = tuple[int, ...]


def order(policy: str, cached: list[str], prompts: list[str]) -> list[str]:
    """Prompts of letters, waiting in this order, as a policy sorts them."""
    tree = RadixTree()
    slot = itertools.count(1)
    for text in cached:
        tree.insert(tuple(map(ord, text)), [next(slot) for _ in text])
    waiting, lengths = [], {}
    for arrival, text in enumerate(prompts):
        s = make_sequence(itertools.count(arrival), tuple(map(ord, text)))
        s.arrival = arrival
        lengths[s.id], s.match_node = tree.match_length(s.key)
        waiting.append(s)
    ordered = policy_named(policy)(waiting, lengths)
    return ["".join(map(chr, s.tokens)) for s in ordered]


def test_fcfs_keeps_the_order_of_arrival() -> None:
    assert order("fcfs", ["abc"], ["x", "abc", "ab"]) == ["x", "abc", "ab"]


def test_lpm_takes_the_longest_cached_prefix_first_and_ties_by_arrival() -> None:
    waiting = ["xy", "abz", "abcd", "aby", "q"]
    assert order("lpm", ["abc"], waiting) == ["abcd", "abz", "aby", "xy", "q"]


def test_dfs_weight_takes_the_branch_with_more_waiting_first() -> None:
    waiting = ["ab1", "cd1", "cd2", "cd3", "ab2"]
    assert order("dfs-weight", ["ab", "cd"], waiting) == ["cd1", "cd2", "cd3", "ab1", "ab2"]


def test_dfs_weight_finishes_a_branch_before_the_next() -> None:
    cached = ["rab", "rcd", "x"]
    waiting = ["rab1", "x1", "rcd1", "x2", "rab2", "x3", "r0"]
    expected = ["rab1", "rab2", "rcd1", "r0", "x1", "x2", "x3"]
    assert order("dfs-weight", cached, waiting) == expected


def test_dfs_weight_stays_on_an_edge_that_is_not_split_yet() -> None:
    """Prompts that share more of the last one go before those that share less, or nothing."""
    waiting = ["x1", "aa1", "aabb1", "x2", "aabb2"]
    assert order("dfs-weight", ["aabbcc"], waiting) == ["aabb1", "aabb2", "aa1", "x1", "x2"]


def test_random_is_an_order_of_its_own_that_does_not_change() -> None:
    waiting = [chr(ord("a") + i) for i in range(20)]
    shuffled = order("random", [], waiting)
    assert sorted(shuffled) == waiting
    assert shuffled not in (waiting, waiting[::-1])
    assert order("random", ["abc"], waiting) == shuffled


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidParamsError, match="'lifo'; known are lpm, dfs-weight, fcfs, random"):
        policy_named("lifo")


def run(policy: str, prompts: list[Tokens], capacity: int) -> Scheduler:
    """Compute prompts one after another, all of them waiting from the start."""
    cache = PrefixCache(capacity)
    limits = SchedulerLimits(policy=policy, max_running=1, max_passes=1000)
    scheduler, runner = Scheduler(cache, limits), FakeRunner(cache)
    ids = itertools.count()
    for prompt in prompts:
        s = make_sequence(ids, prompt)
        runner.know(s)
        scheduler.add(s)
    drive(scheduler, runner)
    return scheduler


requests = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=8).map(tuple), min_size=1, max_size=16
)


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(prompts=requests, spare=st.integers(0, 4))
def test_a_depth_first_order_computes_each_edge_once(
    policy: str, prompts: list[Tokens], spare: int
) -> None:
    """Theorem 3.1: the optimal hit rate, with a pool as small as the longest request."""
    scheduler = run(policy, prompts, max(map(len, prompts)) + spare)
    distinct = {prompt[: i + 1] for prompt in prompts for i in range(len(prompt))}
    assert scheduler.counters.computed_tokens == len(distinct)
    assert scheduler.counters.cached_tokens == sum(map(len, prompts)) - len(distinct)


def test_another_order_misses_the_bar_of_the_theorem() -> None:
    """Two families in turn, and a pool for one of them: each prompt evicts the one before."""
    computed = {}
    for policy in ("lpm", "dfs-weight", "fcfs"):
        prompts = [(family,) * 7 + (last,) for last in range(4) for family in (1, 2)]
        computed[policy] = run(policy, prompts, capacity=8).counters.computed_tokens
    assert computed == {"lpm": 2 * (7 + 4), "dfs-weight": 2 * (7 + 4), "fcfs": 8 * 8}
