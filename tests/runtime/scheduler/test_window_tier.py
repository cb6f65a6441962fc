"""Windows under the scheduler with a second tier: every row finds its window, from disk too."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache, WindowSlots
from sgl_mlx.runtime.cache.tier import Load, Spill, Tier
from sgl_mlx.runtime.cache.window_tier import WindowTier
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import Engine, drive
from tests.runtime.scheduler.stories import StoryMachine, stories
from tests.runtime.scheduler.test_scheduler import few_tokens, limits
from tests.runtime.scheduler.test_windows import WindowMachine, story
from tests.runtime.truth import Tokens, make_sequence, recorder, run_alone
from tests.runtime.window_fakes import WindowRunner, WindowStore

EXAMPLES = int(os.environ.get("SGL_MLX_WINDOW_EXAMPLES", "60"))


class WindowTierMachine(StoryMachine, WindowMachine):
    """Stories of a model with sliding windows, which have slots and blocks of their own."""

    @initialize(
        limits=limits,
        capacity=st.integers(20, 80),
        window=st.integers(2, 6),
        first=st.integers(4, 60),
        more=st.integers(0, 30),
        block=st.integers(1, 4),
        worthwhile=st.integers(1, 5),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        window: int,
        first: int,
        more: int,
        block: int,
        worthwhile: int,
    ) -> None:
        store = WindowStore()
        self.store = store
        tier = Tier(store, "the fake", block, worthwhile)
        windows = WindowSlots(window, first, first + more)
        self.prepare_windows(limits, capacity, 0, windows, tier)
        self.runner = WindowRunner(self.cache, self.store)

    @rule(
        story=stories,
        ends=st.tuples(few_tokens, few_tokens),
        new=st.integers(0, 6),
    )
    def come_back(self, story: Tokens, ends: tuple[Tokens, Tokens], new: int) -> None:
        self.store.full = False
        self.ask(story, ends[0], new)
        self.run_dry()
        self.evict_all()
        self.runner.synchronise(self.cache.take_transfers())
        self.ask(story, ends[1], new)

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            self.ask((1, 2), (), 0)  # admission drops readings that nobody waits for any more
        super().teardown()


TestWindowTier = WindowTierMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestWindowTier.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, derandomize=True
)


class Bench(Engine):
    """A scheduler over pools with windows and a store; blocks of 4, everything worth reading."""

    def __init__(
        self,
        slots: int = 200,
        capacity: int = 400,
        window: int = 7,
        store: WindowStore | None = None,
        **options: int,
    ) -> None:
        super().__init__(**options)
        self.store = store or WindowStore()
        self.cache = PrefixCache(
            capacity,
            tier=Tier(self.store, "the fake", 4, worthwhile=4),
            windows=WindowSlots(window, slots, slots),
        )
        self.scheduler = Scheduler(self.cache, SchedulerLimits(**options))
        self.runner = WindowRunner(self.cache, self.store)

    def finish(self) -> None:
        drive(self.scheduler, self.runner, store=self.store)

    def spill(self) -> None:
        """Evict everything into the store."""
        self.cache.spill()
        self.runner.synchronise(self.cache.take_transfers())
        self.cache.check()

    def ask(self, prompt: Tokens, new: int = 1) -> Sequence:
        s = self.add(prompt, new)
        self.finish()
        assert recorder(s).tokens == run_alone(s, None).tokens
        return s


def whole(length: int) -> int:
    return length // 4 * 4


@pytest.mark.parametrize("length", range(30, 38))
@pytest.mark.parametrize("window", [2, 5, 8, 13])
def test_ends_of_prompts_and_answers_are_restored_as_if_all_layers_shared_their_slots(
    length: int, window: int
) -> None:
    bench, prompt = Bench(window=window), story(1, length)
    said = bench.ask(prompt, 9)
    turn = (*said.tokens, *story(2, 5))
    for again, end in ((prompt, length - 1), ((*prompt, 4, 4), length), (turn, length + 8)):
        bench.spill()
        assert bench.ask(again).cached_tokens == whole(end)
        bench.cache.flush()


def test_the_end_of_a_long_answer_is_restored() -> None:
    bench = Bench(window=9, epoch_steps=4)
    said = bench.ask(story(1, 10), 60)
    bench.spill()
    assert bench.ask((*said.tokens, 1, 2)).cached_tokens == whole(69)


def test_where_paths_branched_all_branches_are_restored() -> None:
    bench, trunk = Bench(), story(1, 33)
    for i in range(4):
        bench.ask((*trunk, *story(10 + i, 12)))
    bench.spill()
    assert bench.ask((*trunk, 4, 4)).cached_tokens == 32
    for i in range(4):
        bench.cache.flush()
        again = bench.ask((*trunk, *story(10 + i, 12), 4))
        assert again.cached_tokens == whole(45)


def test_only_windows_before_ends_are_kept_however_a_prompt_was_cut() -> None:
    bench = Bench(step_tokens=8, window=5)
    bench.ask(story(1, 160))
    bench.spill()
    blocks = sum(1 for _ in bench.cache.tier.keys(story(1, 160), ()))  # type: ignore[union-attr]
    assert blocks == 40
    assert len(bench.store.blocks) - blocks <= 3


def test_one_window_serves_several_ends_near_each_other() -> None:
    """The store never keeps more of a token than it would if layers shared their slots."""
    bench, prompt = Bench(window=20), story(1, 41)
    for _ in range(3):
        prompt = (*bench.ask(prompt, 3).tokens, 4)
    bench.spill()
    whole_blocks = whole(len(prompt)) // 4
    assert len(bench.store.blocks) <= 2 * whole_blocks


def test_a_window_that_was_evicted_alone_is_read_alone() -> None:
    bench, prompt = Bench(slots=40, window=5), story(1, 30)
    bench.ask(prompt)
    for i in range(4):
        bench.ask(story(20 + i, 30))
    read = bench.scheduler.restored_tokens
    assert bench.cache.tree.match_length(prompt)[0] == 30
    assert bench.cache.reusable(prompt, (), 30)[0] < 20
    assert bench.ask((*prompt, 4)).cached_tokens == 28
    assert bench.store.windows_loaded > 0
    assert bench.scheduler.restored_tokens == read


def test_what_has_no_keys_is_not_found_though_memory_has_it() -> None:
    """Tokens after parallel branches have a namespace of their own, which may have no keys."""
    tier = WindowTier(Tier(WindowStore(), "the fake", 4, worthwhile=4), 3)
    assert tier.find(story(1, 30), object(), reusable=0, cached=30) is None


def test_a_lost_window_is_computed_again() -> None:
    bench, prompt = Bench(), story(1, 30)
    bench.ask(prompt)
    bench.spill()
    s = bench.add((*prompt, 4), 1)
    assert bench.scheduler.next() is None
    [*_, window] = bench.store.readings
    for key in window._keys:
        del bench.store.blocks[key]
    bench.finish()
    assert s.cached_tokens == 0
    assert recorder(s).tokens == run_alone(s, None).tokens
    assert not bench.store.held


def test_a_new_engine_over_the_same_store_goes_on() -> None:
    first, prompt = Bench(), story(1, 30)
    first.ask(prompt)
    first.spill()
    again = Bench(store=first.store)
    assert again.ask((*prompt, 4)).cached_tokens == 28


def test_a_prefetch_restores_the_window_too() -> None:
    bench, prompt = Bench(), story(1, 30)
    bench.ask(prompt)
    bench.spill()
    s = make_sequence(itertools.count(99), prompt[:28], 0, background=True)
    bench.runner.know(s)
    bench.scheduler.add(s)
    bench.finish()
    assert bench.cache.reusable(prompt, (), 30)[0] >= 27


def moved(cache: PrefixCache) -> Iterator[tuple[str, bool]]:
    for transfer in cache.take_transfers():
        if isinstance(transfer, Spill | Load):
            yield type(transfer).__name__, transfer.windows


def test_a_flush_spills_no_window() -> None:
    bench = Bench()
    bench.ask(story(1, 30))
    bench.cache.flush()
    assert list(moved(bench.cache)) == []
    bench.ask(story(1, 30))
    bench.cache.spill()
    assert set(moved(bench.cache)) == {("Spill", False), ("Spill", True)}
