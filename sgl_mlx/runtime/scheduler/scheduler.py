"""The scheduler: decides what each step computes. Integers only; no tensor is touched here.

A turn of the engine is `plan = next(); result = runner.run(plan); commit(plan, result)`. Prompts
are prefilled in chunks, mixed with one token for each decoding sequence. When only decoding is
left an epoch opens: fixed rows with slots reserved for several steps, so that the runner can
submit a step before the one before it has come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.restores import Restores
from sgl_mlx.runtime.scheduler.admission import Admission, Counters, SchedulerLimits
from sgl_mlx.runtime.scheduler.append import append
from sgl_mlx.runtime.scheduler.background import Background
from sgl_mlx.runtime.scheduler.plan import (
    Decode,
    Extend,
    Plan,
    Row,
    StepResult,
    prefill_rows,
    row_of,
)
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL, Queues
from sgl_mlx.runtime.scheduler.sequence import Sequence, Shown


@dataclass
class _Epoch:
    """An open epoch: `steps` of `width` were committed; `in_flight` if the next has begun."""

    ids: frozenset[str]
    width: int
    steps: int = 0
    in_flight: bool = False


class Scheduler:
    """The scheduler; `seconds` is the time spent here, the cache's included.

    Args:
        clock: the time that deadlines are compared with.
    """

    def __init__(
        self,
        cache: PrefixCache,
        limits: SchedulerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache = cache
        self.limits = limits or SchedulerLimits()
        self.counters = Counters()
        self.seconds = 0.0
        self._queues = Queues(cache, self.counters)
        self.waiting, self.running = self._queues.waiting, self._queues.running
        self._clock = clock
        self._restores = Restores(cache, cache.tier) if cache.tier else None
        self._admission = Admission(cache, self._restores, self.limits, self.counters)
        self._background = Background(self._queues, self._restores, self._admission)
        self._epoch: _Epoch | None = None

    def add(self, s: Sequence) -> None:
        """Queue a sequence and, before it, those it comes after."""
        self._queues.add(s)

    def abort(self, s: Sequence, message: str | None = None) -> None:
        """End a sequence wherever it stands; what it computed stays in the cache."""
        self._queues.abort(s, message)

    def check(self) -> None:
        """Assert that every slot is free, cached or held exactly once, and states make sense."""
        self._queues.check()

    def fail_all(self, message: str) -> None:
        """End everything and forget all KV, as a step failed and what it wrote is unknown."""
        self._end_all(message)
        self.cache.flush()

    def start_over(self, limits: SchedulerLimits) -> None:
        """Preempt all and forget all KV, as a step failed; go on within these limits."""
        for s in list(self.running):
            self._queues.retract(s)
        self._epoch = None
        self._queues.settle()
        self.cache.flush()
        self._queues.changed = True
        self.limits = limits
        self._admission.limit(limits)

    def spill(self, message: str) -> None:
        """End everything, and offer all KV to the second tier."""
        self._end_all(message)
        self.cache.spill()

    def _end_all(self, message: str) -> None:
        for s in [*self.running, *self.waiting, *self._queues.background]:
            self.abort(s, message)
        self._epoch = None
        self._queues.settle()

    def flush_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while there are requests."""
        if not self.idle:
            return False
        self._queues.settle()
        self.cache.flush()
        return True

    def wake(self) -> None:
        """Look again at waiting sequences: blocks they wait for have been read."""
        self._queues.changed = True

    @property
    def restored_tokens(self) -> int:
        """Tokens restored from the second tier."""
        return self._restores.tokens if self._restores is not None else 0

    @property
    def seconds_left(self) -> float | None:
        """Time until a deadline may pass; None without deadlines."""
        if self._queues.next_deadline == inf:
            return None
        return max(self._queues.next_deadline - self._clock(), 0.0)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running and not self._queues.background

    # -- one turn -----------------------------------------------------------------------------

    def next(self) -> Plan | None:
        """Plan the next step; None when there is nothing to do, or not before `wake`."""
        started = time.perf_counter()
        self._queues.expire(self._clock)
        plan = None
        while plan is None and (self._queues.ended or not self.idle):
            self._queues.settle()
            if self._queues.changed:
                self._admit()
            if self._queues.end_complete() or self._queues.ended:
                continue
            if self.running:
                plan = self._plan()
            elif not self._start_something():
                break
        self.seconds += time.perf_counter() - started
        return plan

    def commit(self, plan: Plan, result: StepResult) -> None:
        """Take the outcome of a step: sequences grow, end, or put their prefix in the tree."""
        started = time.perf_counter()
        used = self.cache.capacity - self.cache.slots.free_count
        self.counters.peak_slots = max(self.counters.peak_slots, used)
        self.counters.forward_passes += 1
        if isinstance(plan, Extend):
            computed = {row.id: len(row.tokens) for row in plan.rows}
            longest = max(self.counters.longest_step, sum(computed.values()))
            self.counters.longest_step = longest
        else:
            assert self._epoch is not None
            self._epoch.steps += 1
            self.counters.decode_passes += 1
            self.counters.decode_rows += len(plan.ids)
            computed = dict.fromkeys(plan.ids, 1)
        for s in [s for s in self.running if s.id in computed]:
            self._advance(s, computed[s.id], result)
        self.seconds += time.perf_counter() - started

    # -- planning -----------------------------------------------------------------------------

    def _admit(self) -> None:
        self._queues.changed = False
        if self._restores is not None:
            self._restores.keep([s.restore for s in (*self.waiting, *self._queues.background)])
        if self._queues.background or any(s.background for s in self.running):
            self._background.advance()
        self._admission.admit(self.waiting, self.running)

    def _plan(self) -> Plan | None:
        """Plan for the running sequences; None when the last of them was preempted."""
        epoch = self._epoch
        if epoch is not None:
            live = [s for s in self.running if s.id in epoch.ids and not s.prefilling]
            others = len(live) < len(self.running)
            if live and (epoch.in_flight or (not others and self._worth_going_on(live))):
                return self._decode(live, ahead=not others)
            self._close_epoch()
        self._queues.changed = True
        if any(s.prefilling for s in self.running):
            return self._extend()
        return self._open_epoch()

    def _worth_going_on(self, live: list[Sequence]) -> bool:
        epoch = self._epoch
        assert epoch is not None
        return epoch.steps < epoch.width and 2 * len(live) > len(epoch.ids)

    def _decode(self, live: list[Sequence], ahead: bool, opening: tuple[Row, ...] = ()) -> Decode:
        epoch = self._epoch
        assert epoch is not None
        more = epoch.steps + 1 < epoch.width and any(s.remaining > 1 for s in live)
        free = all(s.constraint is None for s in live)
        epoch.in_flight = ahead and more and free and self._worth_going_on(live)
        transfers = self.cache.take_transfers() if opening else ()
        ids = tuple(s.id for s in live)
        return Decode(ids, epoch.width, epoch.in_flight, opening, transfers)

    def _open_epoch(self) -> Decode | None:
        width = min(self.limits.epoch_steps, max(s.remaining for s in self.running))
        while width > 1 and self._slots_wanted(width) > self.cache.available:
            width //= 2
        for s in list(self.running):
            if s in self.running:
                self._queues.reserve(s, min(width, s.remaining))
        if not self.running:
            return None
        self._epoch = _Epoch(frozenset(s.id for s in self.running), width)
        opening = tuple(row_of(s, 1, len(s.table)) for s in self.running)
        return self._decode(self.running, ahead=True, opening=opening)

    def _close_epoch(self) -> None:
        """Return the slots reserved for steps that were not taken."""
        self._epoch = None
        for s in self.running:
            assert s.holding is not None
            self.cache.trim(s.holding, min(len(s.tokens), len(s.table)))

    def _slots_wanted(self, width: int) -> int:
        return sum(
            max(s.computed + min(width, s.remaining) - len(s.table), 0) for s in self.running
        )

    def _extend(self) -> Extend | None:
        for s in list(self.running):
            if s in self.running:
                self._queues.reserve(s, s.pending)
        limits = self.limits
        rows = prefill_rows(self.running, limits.step_tokens, limits.score_tokens)
        return Extend(rows, self.cache.take_transfers()) if rows else None

    # -- outcome ------------------------------------------------------------------------------

    def _advance(self, s: Sequence, count: int, result: StepResult) -> None:
        in_prompt = max(min(s.computed + count, s.prompt_length) - s.computed, 0)
        self.counters.computed_tokens += in_prompt
        self.counters.decode_tokens += count - in_prompt
        shares = s.prefilling
        s.computed += count
        if s.id in result.prompt_scores:
            s.output.score_prompt(result.prompt_scores[s.id])
        if s.logprob_start is not None and s.computed >= s.logprob_start:
            s.logprob_start = s.computed + 1 if s.computed < s.prompt_length else None
        if shares:
            assert s.holding is not None
            self.cache.share(s.holding, s.key[: s.computed])
        if s.computed == len(s.tokens):
            self._continue(s, result)

    def _continue(self, s: Sequence, result: StepResult) -> None:
        scores = result.token_scores.get(s.id)
        if s.params.max_new_tokens == 0:
            if scores is not None:
                s.output.score_next(scores.at(0))
            self._queues.end(s, FinishReason("length", length=0))
            return
        reason = append(s, result.tokens[s.id], scores)
        if reason is not None:
            self._queues.end(s, reason)

    def _start_something(self) -> bool:
        """Start a sequence, as nothing runs and nothing was admitted; False if none can start."""
        if self.waiting:
            return self._unblock()
        return bool(self._queues.background) and self._background.start()

    def _unblock(self) -> bool:
        """Start the most urgent sequence as nothing runs, or end it if it can never start.

        It is ready unless it waits for blocks being read, because what it comes after is of the
        same priority and older; False if anything waits for blocks.
        """
        if any(s.restore is not None and not s.restore.done for s in self.waiting):
            return False
        first = min(self.waiting, key=lambda s: s.urgency)
        while not self._admission.start(first, self.waiting, self.running):
            if not self._queues.reclaim(first):
                self.abort(first, TOO_SMALL)
                break
        return True

    # -- what plans name: plan.Lookup ---------------------------------------------------------

    def masks(self, constraints: Collection[str]) -> dict[str, bytes]:
        """See `plan.Lookup`; a constraint has the id of its sequence."""
        return {
            s.id: s.constraint.allowed()
            for s in self.running
            if s.constraint is not None and s.id in constraints
        }

    def image(self, picture: str) -> Shown:
        """See `plan.Lookup`."""
        return next(p.image for s in self.running for p in s.pictures if p.name == picture)
