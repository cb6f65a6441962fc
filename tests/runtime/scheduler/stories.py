"""Rules for machines with a second tier, whichever kind of memory lies in it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.runtime.fakes import drive
from tests.runtime.scheduler.test_scheduler import SchedulerMachine, few_tokens, tokens
from tests.runtime.truth import Tokens, make_sequence

STORIES = [(1, 2, 3) * 4, (2, 2, 1, 3) * 3, (1, 2, 3, 1, 1, 1, 1)]
stories = st.sampled_from(STORIES)
ends = few_tokens | tokens


class StoryMachine(SchedulerMachine):
    """Few, long prefixes that are evicted, lost, restored and asked for again and again."""

    @rule(story=stories, end=ends, new=st.integers(0, 6))
    def ask(self, story: Tokens, end: Tokens, new: int) -> None:
        self._add(make_sequence(self.ids, story + end, new))

    @rule(story=stories, end=ends)
    def prefetch_story(self, story: Tokens, end: Tokens) -> None:
        self._add(make_sequence(self.ids, story + end, background=True))

    @rule()
    def evict_all(self) -> None:
        self.cache.spill()

    @rule()
    def run_dry(self) -> None:
        drive(self.scheduler, self.runner, store=self.store)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        drive(self.scheduler, self.runner, 3000, self.store, self._run)
        self.runner.synchronise(self.cache.take_transfers())
        super().teardown()
        self.scheduler.wake()
        assert not self.store.held, "a reading that nobody will load was not dropped"
