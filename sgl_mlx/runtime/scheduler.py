"""What each step computes. Integers only; no tensor is touched here.

A turn of the engine is `plan = next(); result = runner.run(plan); commit(plan, result)`. Prompts
are prefilled in chunks, mixed with one token for each decoding sequence. When only decoding is
left an epoch opens: fixed rows with slots reserved for several steps, so that the runner can
submit a step before the one before it has come back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.admission import Admission, Counters, SchedulerLimits
from sgl_mlx.runtime.plan import Decode, Extend, Plan, Row, StepResult
from sgl_mlx.runtime.prefix_cache import PrefixCache
from sgl_mlx.runtime.rows import prefill_rows, row_of
from sgl_mlx.runtime.sequence import Constraint, Scores, Sequence

TOO_SMALL = "the KV pool is too small for this request"


@dataclass
class _Epoch:
    """`steps` of `width` were committed; with `in_flight` the runner has begun the next."""

    ids: frozenset[str]
    width: int
    steps: int = 0
    in_flight: bool = False


class Scheduler:
    """See the module. `seconds` is the time spent here, the cache's included."""

    def __init__(self, cache: PrefixCache, limits: SchedulerLimits | None = None) -> None:
        self.cache = cache
        self.limits = limits or SchedulerLimits()
        self.counters = Counters()
        self.seconds = 0.0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._ended: list[Sequence] = []
        self._admission = Admission(cache, self.limits, self.counters)
        self._arrivals = 0
        self._epoch: _Epoch | None = None
        self._changed = False  # what admission depends on, since it last looked

    # -- the queue ----------------------------------------------------------------------------

    def add(self, s: Sequence) -> None:
        """Queue a sequence and, before it, those it comes after."""
        for needed in s.after:
            needed.consumer = s
            self.add(needed)
        self._arrivals += 1
        s.arrival = self._arrivals
        self.waiting.append(s)
        self._changed = True

    def abort(self, s: Sequence, message: str | None = None) -> None:
        """End a sequence wherever it stands; what it computed stays in the cache."""
        if s.finish_reason is None:
            self._end(s, FinishReason("abort", message=message))

    def fail_all(self, message: str) -> None:
        """End everything and forget all KV: a step failed and what it wrote is not known."""
        for s in [*self.running, *self.waiting]:
            self.abort(s, message)
        self._epoch = None
        self._settle()
        self.cache.flush()

    def flush_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while there are requests."""
        if not self.idle:
            return False
        self._settle()
        self.cache.flush()
        return True

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def sequences(self) -> Iterator[Sequence]:
        """Everything that may hold slots."""
        stack = [*self.waiting, *self.running, *self._ended]
        seen = {id(s) for s in stack}
        while stack:
            s = stack.pop()
            yield s
            for needed in s.after:
                if id(needed) not in seen:
                    seen.add(id(needed))
                    stack.append(needed)

    def check(self) -> None:
        """Assert that every slot is free, cached or held exactly once, and states make sense."""
        sequences = list(self.sequences())
        self.cache.check(s.holding for s in sequences if s.holding is not None)
        for s in sequences:
            if s.holding is not None:
                assert s.holding.shared <= s.computed <= len(s.table)
            assert s.computed <= len(s.tokens)

    # -- one turn -----------------------------------------------------------------------------

    def next(self) -> Plan | None:
        """What to compute now; None when there is nothing to do."""
        started = time.perf_counter()
        plan = None
        while plan is None and (self._ended or not self.idle):
            self._settle()
            if self._changed:
                self._changed = False
                self._admission.admit(self.waiting, self.running)
            if self._end_complete():
                continue
            if self.running:
                plan = self._plan()
            elif self.waiting:
                self._unblock()
        self.seconds += time.perf_counter() - started
        return plan

    def commit(self, plan: Plan, result: StepResult) -> None:
        """Take the outcome of a step: sequences grow, end, or put their prefix in the tree."""
        started = time.perf_counter()
        self.counters.forward_passes += 1
        if isinstance(plan, Extend):
            computed = {row.id: len(row.tokens) for row in plan.rows}
        else:
            assert self._epoch is not None
            self._epoch.steps += 1
            computed = dict.fromkeys(plan.ids, 1)
        for s in [s for s in self.running if s.id in computed]:
            self._advance(s, computed[s.id], result)
        self.seconds += time.perf_counter() - started

    # -- planning -----------------------------------------------------------------------------

    def _plan(self) -> Plan | None:
        """None when the last running sequence had to give way."""
        epoch = self._epoch
        if epoch is not None:
            live = [s for s in self.running if s.id in epoch.ids and not s.prefilling]
            others = len(live) < len(self.running)
            if live and (epoch.in_flight or (not others and self._worth_going_on(live))):
                return self._decode(live, ahead=not others)
            self._close_epoch()
        self._changed = True
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
        return Decode(tuple(s.id for s in live), epoch.width, epoch.in_flight, opening)

    def _open_epoch(self) -> Decode | None:
        width = min(self.limits.epoch_steps, max(s.remaining for s in self.running))
        while width > 1 and self._slots_wanted(width) > self.cache.available:
            width //= 2
        for s in list(self.running):
            if s in self.running:
                self._reserve(s, min(width, s.remaining))
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
                self._reserve(s, s.pending)
        rows = prefill_rows(self.running, self.limits)
        return Extend(rows) if rows else None

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
            self.cache.share(s.holding, tuple(s.tokens[: s.computed]))
        if s.computed == len(s.tokens):
            self._continue(s, result)

    def _continue(self, s: Sequence, result: StepResult) -> None:
        scores = result.token_scores.get(s.id)
        if s.params.max_new_tokens == 0:
            if scores is not None:
                s.output.score_next(scores)
            self._end(s, FinishReason("length", length=0))
            return
        reason = self._take(s, result.tokens[s.id], scores)
        if reason is None and s.constraint is not None:
            reason = self._follow(s, s.constraint, result.tokens[s.id])
        if reason is not None:
            self._end(s, reason)

    @staticmethod
    def _take(
        s: Sequence, token: int, scores: Scores | None, forced: bool = False
    ) -> FinishReason | None:
        s.tokens.append(token)
        reason = s.output.push(token, scores, forced)
        if reason is None and s.remaining <= 0:
            reason = FinishReason("length", length=s.params.max_new_tokens)
        return reason

    def _follow(self, s: Sequence, constraint: Constraint, token: int) -> FinishReason | None:
        """Append what the constraint forces after a token; it is computed in one extend."""
        constraint.accept(token)
        for forced in constraint.forced():
            reason = self._take(s, forced, None, forced=True)
            if reason is not None:
                return reason
        if constraint.error is not None:
            return FinishReason("abort", message=f"the grammar came to an end: {constraint.error}")
        if constraint.complete:
            return FinishReason("stop")
        if constraint.done:
            s.constraint = None
        return None

    def _end(self, s: Sequence, reason: FinishReason) -> None:
        s.finish_reason = reason
        for queue in (self.waiting, self.running):
            if s in queue:
                queue.remove(s)
        self._ended.append(s)
        for needed in s.after:
            self.abort(needed, "the request it was computed for ended")
        if s.consumer is not None and reason.type == "abort":
            self.abort(s.consumer, reason.message)
        s.output.finish(reason)

    # -- slots --------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Put what ended sequences computed into the tree and let go of their slots.

        Their last tokens may not be in the pool yet. That is safe: only a plan other than a
        `Decode` of the open epoch can read or reuse those slots, and the runner writes an epoch's
        KV to the pool before it runs such a plan.
        """
        for s in self._ended:
            self._changed = True
            if s.holding is not None:
                self._share_computed(s)
            if not s.held:
                self._let_go(s)
        self._ended.clear()

    def _let_go(self, s: Sequence) -> None:
        s.held = False
        if s.finish_reason is None:
            return
        if s.holding is not None:
            self.cache.close(s.holding)
            s.holding = None
        for needed in s.after:
            self._let_go(needed)

    def _share_computed(self, s: Sequence) -> None:
        assert s.holding is not None
        if s.computed > s.holding.shared:
            self.cache.share(s.holding, tuple(s.tokens[: s.computed]))

    def _reserve(self, s: Sequence, count: int) -> None:
        """Slots for the next `count` tokens of `s`, or fewer; for one token at any price."""
        assert s.holding is not None
        missing = s.computed + count - len(s.table)
        if missing <= 0 or self.cache.extend(s.holding, missing):
            return
        while len(s.table) <= s.computed and not self.cache.extend(s.holding, 1):
            if len(self.running) > 1:
                self._retract(max(self.running, key=lambda r: r.arrival))
            elif not self._reclaim(s):
                self.abort(s, TOO_SMALL)
            if s not in self.running:
                return

    def _retract(self, s: Sequence) -> None:
        """Preempt: back to the queue; what it computed is left to the cache."""
        assert s.holding is not None
        self.counters.preemptions += 1
        self._share_computed(s)
        self.cache.close(s.holding)
        s.holding, s.computed, s.match_node = None, 0, None
        self.running.remove(s)
        self.waiting.append(s)

    def _reclaim(self, s: Sequence) -> bool:
        """Make way for `s` alone: give up branches held for the newest other request that waits.

        They are computed again when its turn comes. Each time `s` gets at least one step further,
        so that two requests cannot undo each other's work for ever.
        """
        others = [w for w in self.waiting if w.purpose is not s.purpose]
        holders = [w for w in others if any(needed.holding for needed in w.after)]
        if not holders:
            return False
        for needed in max(holders, key=lambda w: w.arrival).after:
            if needed.holding is not None:
                self.cache.close(needed.holding)
                needed.holding, needed.computed, needed.match_node = None, 0, None
                needed.finish_reason = None
                self.waiting.append(needed)
        return True

    def _end_complete(self) -> bool:
        """End prompts that were wanted for their KV alone and are wholly cached."""
        complete = [s for s in self.running if s.pending == 0]
        for s in complete:
            self._end(s, FinishReason("length", length=0))
        return bool(complete)

    def _unblock(self) -> None:
        """Nothing runs and nothing was admitted: start the oldest, or end it if it never can.

        The oldest is always ready, because what it comes after is older still.
        """
        oldest = min(self.waiting, key=lambda s: s.arrival)
        while not self._admission.start(oldest, self.waiting, self.running):
            if not self._reclaim(oldest):
                self.abort(oldest, TOO_SMALL)
                return
