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
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, Row, Shown, StepResult
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL, Queues
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.scheduler.trials import Trials

_ALTERNATIVES_COST = 4
"""Measured on SmolLM2's 49,152 tokens, on a CPU: 3.4 times the time of a score alone."""


@dataclass
class _Epoch:
    """An open epoch: `steps` of `width` were committed; `in_flight` if the next has begun.

    `starts` has how many tokens of each row had been computed when it opened.
    """

    starts: dict[str, int]
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
        self._trials: Trials | None = None

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
        """End everything and forget all KV, because what the pool holds is unknown."""
        self._end_all(message)
        self.cache.flush()

    def start_over(self, limits: SchedulerLimits) -> None:
        """Preempt all and forget all KV, as a step failed; go on within these limits."""
        for s in list(self.running):
            self._queues.retract(s)
        self._epoch = self._trials = None
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
            if self._queues.changed and not self._tried():
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
        self.counters.steps += 1
        computed = _computed(plan)
        if isinstance(plan, Extend):
            longest = max(self.counters.longest_step, sum(computed.values()))
            self.counters.longest_step = longest
        else:
            assert self._epoch is not None
            self._epoch.steps += 1
            self.counters.decode_passes += 1
            self.counters.decode_rows += len(plan.ids)
        for s in [s for s in self.running if s.id in computed]:
            self._advance(s, computed[s.id], result)
        self.seconds += time.perf_counter() - started

    def retry(self, plan: Plan, message: str) -> None:
        """Go on after a step that failed, without the row that made it fail.

        Its rows are tried again by halves. One that fails alone ends with the message; the others
        get the tokens that they would have got. The KV that the plan was to write is not there,
        nor that of an epoch that it belongs to.
        """
        ahead = isinstance(plan, Decode) and plan.ahead
        computed = _computed(plan)
        goals = {s: s.computed + computed[s.id] + ahead for s in self.running if s.id in computed}
        if isinstance(plan, Decode):
            self._lose_epoch()
        self._trials = self._trials or Trials()
        culprit = self._trials.split(goals)
        if culprit is not None:
            self.abort(culprit, message)
        self._queues.changed = True

    def _lose_epoch(self) -> None:
        """Go back to where the open epoch began: its KV never reached the pool."""
        epoch, self._epoch = self._epoch, None
        assert epoch is not None
        for s in [*self.running, *self._queues.ended]:
            if s.id in epoch.starts and s.holding is not None:
                s.computed = epoch.starts[s.id]
                self.cache.trim(s.holding, s.computed)
            elif s in self.running:  # admitted since, perhaps on a prefix that the epoch computed
                self._queues.retract(s)
        self._queues.settle()
        self._queues.forget_branches()
        self.cache.flush()

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
        epoch, rows = self._epoch, self._tried() or self.running
        if epoch is not None:
            live = [s for s in rows if s.id in epoch.starts and not s.prefilling]
            others = len(live) < len(rows)
            if live and (epoch.in_flight or (not others and self._worth_going_on(live))):
                return self._decode(live, ahead=not others)
            self._close_epoch()
        self._queues.changed = True
        if any(s.prefilling for s in rows):
            return self._extend(rows)
        return self._open_epoch(rows)

    def _tried(self) -> list[Sequence]:
        """List the running sequences that are tried after a failure; the others wait for them."""
        tried = self._trials.rows(self.running) if self._trials is not None else []
        if not tried:
            self._trials = None
        return tried

    def _worth_going_on(self, live: list[Sequence]) -> bool:
        epoch = self._epoch
        assert epoch is not None
        return epoch.steps < epoch.width and 2 * len(live) > len(epoch.starts)

    def _decode(self, live: list[Sequence], ahead: bool, opening: tuple[Row, ...] = ()) -> Decode:
        epoch = self._epoch
        assert epoch is not None
        more = epoch.steps + 1 < epoch.width and any(s.remaining > 1 for s in live)
        free = self._trials is None and all(s.constraint is None for s in live)
        epoch.in_flight = ahead and more and free and self._worth_going_on(live)
        transfers = self.cache.take_transfers() if opening else ()
        ids = tuple(s.id for s in live)
        return Decode(ids, epoch.width, epoch.in_flight, opening, transfers)

    def _open_epoch(self, rows: list[Sequence]) -> Decode | None:
        width = min(self.limits.epoch_steps, max(s.remaining for s in rows))
        while width > 1 and _slots_wanted(rows, width) > self.cache.available:
            width //= 2
        rows = self._reserve(rows, lambda s: min(width, s.remaining))
        if not rows:
            return None
        self._epoch = _Epoch({s.id: s.computed for s in rows}, width)
        opening = tuple(s.row(1, len(s.table)) for s in rows)
        return self._decode(rows, ahead=True, opening=opening)

    def _close_epoch(self) -> None:
        """Return the slots reserved for steps that were not taken."""
        self._epoch = None
        for s in self.running:
            assert s.holding is not None
            self.cache.trim(s.holding, min(len(s.tokens), len(s.table)))

    def _extend(self, sequences: list[Sequence]) -> Extend | None:
        sequences = self._reserve(sequences, lambda s: s.pending)
        rows = self._prefill_rows(sequences)
        return Extend(rows, self.cache.take_transfers()) if rows else None

    def _reserve(
        self, sequences: list[Sequence], count: Callable[[Sequence], int]
    ) -> list[Sequence]:
        """Reserve slots for tokens of each; return those that were not preempted for others."""
        for s in list(sequences):
            if s in self.running:
                self._queues.reserve(s, count(s))
        return [s for s in sequences if s in self.running]

    def _prefill_rows(self, sequences: list[Sequence]) -> tuple[Row, ...]:
        """Make the rows of an `Extend`: a token of each decoding sequence, then chunks of prompts.

        Together they are within the limits on tokens, and on prompt tokens that are scored; one
        with likeliest alternatives counts as `_ALTERNATIVES_COST`, because those are sorted out of
        the whole vocabulary.
        """
        room, score_room = self.limits.step_tokens, self.limits.score_tokens
        rows: list[Row] = []
        for s in sorted(sequences, key=lambda s: s.prefilling):
            count = min(s.pending, len(s.table) - s.computed, room)
            if s.logprob_start is not None:
                cost = _ALTERNATIVES_COST if s.params.top_logprobs_num else 1
                unscored = max(s.logprob_start - 1 - s.computed, 0)
                count = min(count, unscored + max(score_room // cost, min(score_room, 1)))
                score_room = max(score_room - cost * max(count - unscored, 0), 0)
            if count > 0:
                rows.append(s.row(count, s.computed + count))
                room -= count
        return tuple(rows)

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
        try:
            reason = append(s, result.tokens[s.id], scores)
        except Exception as error:  # of its stops, its grammar or its text: nobody else's
            reason = FinishReason("abort", message=f"{type(error).__name__}: {error}")
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


def _computed(plan: Plan) -> dict[str, int]:
    """Count the tokens that a plan computes, by sequence id."""
    if isinstance(plan, Extend):
        return {row.id: len(row.tokens) for row in plan.rows}
    return dict.fromkeys(plan.ids, 1)


def _slots_wanted(sequences: list[Sequence], width: int) -> int:
    return sum(max(s.computed + min(width, s.remaining) - len(s.table), 0) for s in sequences)
