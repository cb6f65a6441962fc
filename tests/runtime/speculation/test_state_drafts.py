"""Drafts on models with recurrent layers: a draft that is not accepted whole is taken back."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation import drafting
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.speculator import Speculation
from tests.runtime.hybrids import HYBRIDS, PURE, Open, alone, greedy, text
from tests.runtime.scheduler.test_states import (
    FaultyStateRunner,
    StateMachine,
    StateRetryMachine,
    state_limits,
)
from tests.runtime.speculation.costs import FREE
from tests.runtime.speculation.test_scheduler_drafts import Oracle
from tests.runtime.state_fakes import StateRunner

errors = st.sampled_from([0.0, 0.2, 0.7])


class DraftingStateMachine(StateMachine):
    """All that may happen to recurrent states, with right and wrong drafts."""

    @initialize(
        limits=state_limits,
        capacity=st.integers(6, 60),
        most_tokens=st.integers(1, 3),
        states=st.integers(1, 12),
        first_states=st.integers(1, 12),
        errors=errors,
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        most_tokens: int,
        states: int,
        first_states: int,
        errors: float,
    ) -> None:
        self.prepare_states(limits, capacity, states, first_states=first_states)
        speculation = Speculation((Oracle(1, errors),), FREE)
        self.scheduler = Scheduler(self.cache, limits, lambda: self.now, speculation)
        self.runner = StateRunner(self.cache, self.store, most_tokens)


TestDraftedStates = DraftingStateMachine.TestCase
TestDraftedStates.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
)


class FailingDrafts(StateRetryMachine):
    """Steps fail at random while they verify drafts."""

    @initialize(
        limits=state_limits,
        capacity=st.integers(6, 60),
        states=st.integers(1, 12),
        hiccups=st.sets(st.integers(1, 60), max_size=6),
        errors=errors,
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        states: int,
        hiccups: set[int],
        errors: float,
    ) -> None:
        self.prepare_states(limits, capacity, states)
        speculation = Speculation((Oracle(2, errors),), FREE)
        self.scheduler = Scheduler(self.cache, limits, lambda: self.now, speculation)
        self.runner = self.poisoned = FaultyStateRunner(self.cache, self.store)
        self.poisoned.hiccups = hiccups


TestFailingDrafts = FailingDrafts.TestCase
TestFailingDrafts.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
)


def test_a_draft_gives_up_no_snapshot() -> None:
    cache = PrefixCache(60, states=2)
    holding = cache.open((1, 2, 3))
    assert cache.begin(holding)
    assert cache.extend(holding, 3)
    assert cache.snapshots is not None
    cache.snapshots.advanced(holding, final=True, cut=False)
    cache.share(holding, (1, 2, 3))
    assert cache.snapshots.keep(holding)
    cache.snapshots.advanced(holding, final=True, cut=False)
    assert not cache.draft(holding)
    assert cache.snapshots.cached == 1
    cache.check([holding])


NEW = 16


class Told:
    """Drafter that was told the answers, and gets some tokens wrong."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]]) -> None:
        self._answers = answers
        self._random = random.Random(0)

    def propose(self, s: Sequence, limit: int) -> Proposal | None:
        answer = self._answers[tuple(s.tokens[: s.prompt_length])]
        right = answer[len(s.output_tokens) :][:limit]
        guess = [t if self._random.random() > 0.15 else self._random.randrange(9) for t in right]
        return Proposal(tuple(guess), "told") if guess else None

    def ended(self, s: Sequence) -> None:
        pass

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("architecture", [*HYBRIDS, *PURE])
def test_a_hybrid_answers_with_drafts_as_mlx_lm_without(
    architecture: str, open_toy: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of different lengths, again with what was cached, and preempted."""
    prompts = [text(i, n) for i, n in enumerate([1, 5, 17, 40, 12, 11])]
    right = [alone(architecture, p, NEW) for p in prompts]
    told = Told(dict(zip(prompts, right, strict=True)))
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(drafting, "drafters", lambda *_: (told,))
    engine = open_toy(architecture, max_total_tokens=130, speculate="auto")
    for _ in range(2):
        assert greedy(engine, prompts, NEW) == right
    stats = engine.get_server_info()["stats"]
    assert 0 < stats["accepted_tokens"] < stats["drafted_tokens"]
    assert stats["states_running"] == 0
