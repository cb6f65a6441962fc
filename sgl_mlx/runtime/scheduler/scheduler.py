"""The scheduler: decides what each step computes. Integers only, no tensors.

One step of the engine is `plan = next(); result = runner.run(plan); commit(plan, result)`. Prompts
are prefilled in chunks, mixed with one token for each decoding sequence. When all running sequences
decode, an epoch opens: fixed rows with slots reserved for several steps, so that the runner can
submit a step before the previous one has finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.restores import Restores
from sgl_mlx.runtime.scheduler.admission import Admission, Counters, SchedulerLimits, divide
from sgl_mlx.runtime.scheduler.append import append
from sgl_mlx.runtime.scheduler.background import Background
from sgl_mlx.runtime.scheduler.epoch import Epoch, has_slots
from sgl_mlx.runtime.scheduler.named import Named
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, Row, StepResult
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL, Queues
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.scheduler.trials import Trials
from sgl_mlx.runtime.speculation.speculator import Draft, Speculation, Speculator


class Scheduler:
    """The scheduler of one engine. `seconds` is the time spent in its methods and the cache.

    Args:
        clock: returns the time with which deadlines are compared.
        speculation: the drafters, and the costs of steps; None drafts nothing.
    """

    def __init__(
        self,
        cache: PrefixCache,
        limits: SchedulerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        speculation: Speculation | None = None,
    ) -> None:
        self.cache = cache
        self.limits = limits or SchedulerLimits()
        self.counters = Counters()
        self.seconds = 0.0
        self._speculator = speculation and Speculator(speculation, cache, self.counters)
        keeps_ends = self.limits.snapshots.keeps_ends
        self._queues = Queues(cache, self.counters, keeps_ends, self._speculator)
        self.waiting, self.running = self._queues.waiting, self._queues.running
        self.lookup = Named(self.running, self._speculator)
        self._clock = clock
        self._restores = Restores(cache, cache.tier) if cache.tier else None
        self._admission = Admission(cache, self._restores, self.limits, self.counters)
        self._background = Background(self._queues, self._restores, self._admission)
        self._epoch: Epoch | None = None
        self._trials: Trials | None = None
        self._planned: Plan | None = None

    def add(self, s: Sequence) -> None:
        """Queue a sequence and, before it, the sequences in its `after`."""
        self._queues.add(s)

    def abort(self, s: Sequence, message: str | None = None) -> None:
        """Abort a sequence, unless it has ended; the KV it computed stays in the cache."""
        planned = self._planned is not None and s.id in _computed(self._planned)
        if planned and s.holding is not None:
            s.holding.ready = False  # the step may have moved the state beyond what is committed
        self._queues.abort(s, message)

    def check(self) -> None:
        """Assert that each slot is free, cached or held exactly once, and that counts agree."""
        self._queues.check()

    def fail_all(self, message: str) -> None:
        """Abort all sequences and forget all KV, when the content of the pool is unknown."""
        self._end_all(message)
        self.cache.flush()

    def start_over(self, limits: SchedulerLimits) -> None:
        """Preempt all running sequences, forget all KV and set `limits`, after a failed step."""
        for s in list(self.running):
            self._queues.retract(s)
        self._epoch = self._trials = None
        self._queues.settle()
        self.cache.flush()
        self._queues.changed = True
        self.limits = limits
        self._admission.limit(limits)

    def spill(self, message: str) -> None:
        """Abort all sequences and offer all cached KV to the disk cache."""
        self._end_all(message)
        self.cache.spill()

    def _end_all(self, message: str) -> None:
        for s in [*self.running, *self.waiting, *self._queues.background]:
            self.abort(s, message)
        self._epoch = None
        self._queues.settle()
        if self._restores is not None:
            self._restores.keep([])

    def flush_cache(self) -> bool:
        """Forget all cached prefixes and return True.

        While there are sequences, nothing is forgotten, and the result is False.
        """
        if not self.idle:
            return False
        self._queues.settle()
        self.cache.flush()
        if self._speculator is not None:
            self._speculator.flush()
        return True

    def wake(self) -> None:
        """Try admission again at the next step, because blocks from disk have been read."""
        self._queues.changed = True

    @property
    def restored_tokens(self) -> int:
        """Number of tokens whose KV was restored from the disk cache."""
        return self._restores.tokens if self._restores is not None else 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the next deadline may pass, at least 0; None without deadlines."""
        if self._queues.next_deadline == inf:
            return None
        return max(self._queues.next_deadline - self._clock(), 0.0)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running and not self._queues.background

    # -- one turn -----------------------------------------------------------------------------

    def next(self) -> Plan | None:
        """Plan the next step; None if no sequence is left, or if all wait for disk (see `wake`)."""
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
        self._planned = plan if self.cache.snapshots is not None else None
        self.seconds += time.perf_counter() - started
        return plan

    def commit(self, plan: Plan, result: StepResult) -> None:
        """Apply the result of a step: append tokens, end sequences, share computed prefixes."""
        started = time.perf_counter()
        self._planned = None
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
        if self._speculator is not None and isinstance(plan, Extend):
            self._speculator.verified(plan, result, [*self.running, *self._queues.ended])
        if self.cache.windows is not None and isinstance(plan, Extend):
            for s in self.running:
                if s.holding is not None:
                    self.cache.windows.advance(s.holding, s.computed)
        self.seconds += time.perf_counter() - started

    def retry(self, plan: Plan, message: str) -> None:
        """Handle a failed step: find the sequence that makes it fail and abort only that one.

        The step's sequences are tried again in halves. A sequence that fails alone is aborted with
        `message`; all other sequences get the same tokens as without the failure. The KV of the
        failed plan and of its epoch counts as lost.
        """
        self._planned = None
        ahead = isinstance(plan, Decode) and plan.ahead
        computed = _computed(plan)
        goals = {s: s.computed + computed[s.id] + ahead for s in self.running if s.id in computed}
        if isinstance(plan, Decode):
            self._lose_epoch()
        elif self._speculator is not None:
            self._speculator.failed(self.running)
        self._trials = self._trials or Trials()
        culprit = self._trials.split(goals)
        if culprit is not None:
            self.abort(culprit, message)
        self._queues.changed = True

    def _lose_epoch(self) -> None:
        """Reset sequences to the epoch's start, because the epoch's KV is lost; flush the cache.

        Sequences admitted since then are preempted. Branches held for waiting requests are given
        up.
        """
        epoch, self._epoch = self._epoch, None
        assert epoch is not None
        for s in [*self.running, *self._queues.ended]:
            if s.id in epoch.starts and s.holding is not None:
                s.computed, s.holding.ready = epoch.starts[s.id]
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
        """Plan a step of the running sequences; None if none is left after preemption."""
        epoch, rows = self._epoch, self._tried() or self.running
        drafts = self._drafts(rows)
        if epoch is not None:
            live = [s for s in rows if s.id in epoch.starts and not s.prefilling]
            others = len(live) < len(rows) or bool(drafts)
            if live and (epoch.in_flight or (not others and self._worth_going_on(live))):
                return self._decode(live, ahead=not others)
            self._close_epoch()
        self._queues.changed = True
        if drafts or any(s.prefilling for s in rows):
            return self._extend(rows, drafts)
        return self._open_epoch(rows)

    def _tried(self) -> list[Sequence]:
        """List the running sequences being tried again after a failed step; [] if none are."""
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
        while width > 1 and not has_slots(self.cache, rows, width):
            width //= 2
        rows = self._reserve(rows, lambda s: min(width, s.remaining))
        if self.cache.windows is not None:
            for s in rows:
                self._queues.reserve_window(s, min(width, s.remaining))
            rows = [s for s in rows if s in self.running]
        if not rows:
            return None
        starts = {s.id: (s.computed, s.holding is not None and s.holding.ready) for s in rows}
        self._epoch = Epoch(starts, width)
        opening = tuple(s.row(1, len(s.table)) for s in rows)
        return self._decode(rows, ahead=True, opening=opening)

    def _close_epoch(self) -> None:
        """Close the open epoch and free the slots reserved for steps that were not computed."""
        self._epoch = None
        for s in self.running:
            assert s.holding is not None
            self.cache.trim(s.holding, min(len(s.tokens), len(s.table)))
            if self.cache.snapshots is not None:
                self.cache.snapshots.settle(s.holding)
            if self.cache.windows is not None:
                self.cache.windows.advance(s.holding, s.computed)

    def _drafts(self, rows: list[Sequence]) -> dict[str, Draft]:
        """Choose the next step's drafts by sequence id; {} while a failed step is tried again."""
        if self._speculator is None or self._trials or all(s.prefilling for s in rows):
            return {}
        return self._speculator.drafts(rows, self.limits.step_tokens)

    def _extend(self, sequences: list[Sequence], drafts: dict[str, Draft]) -> Extend | None:
        sequences = self._reserve(sequences, lambda s: s.pending + len(drafts.get(s.id, ())))
        shares = divide(sequences, drafts, self.limits)
        if self.cache.windows is not None:
            reserve = self._queues.reserve_window
            granted = {x.sequence.id: reserve(x.sequence, x.tokens) for x in shares}
            left = [x for x in shares if x.sequence in self.running]
            shares = [x.cut(granted[x.sequence.id]) for x in left]
        if drafts and self._speculator is not None:
            shares = [self._speculator.begin(x) for x in shares]
        rows = tuple(share.row() for share in shares)
        return Extend(rows, self.cache.take_transfers()) if rows else None

    def _reserve(
        self, sequences: list[Sequence], count: Callable[[Sequence], int]
    ) -> list[Sequence]:
        """Reserve slots for `count(s)` tokens of each `s`; return the sequences that still run."""
        for s in list(sequences):
            if s in self.running:
                self._queues.reserve(s, count(s))
        return [s for s in sequences if s in self.running]

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
            if self.cache.windows is not None and s.computed == s.prompt_length:
                self.cache.windows.mark(s.holding)
        if self.cache.snapshots is not None and s.holding is not None:
            cut = shares and s.computed in s.cuts
            self.cache.snapshots.advanced(s.holding, final=self._epoch is None, cut=cut)
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
        except Exception as error:  # from this sequence's stops, grammar or text: only it ends
            reason = FinishReason("abort", message=f"{type(error).__name__}: {error}")
        if reason is not None:
            self._queues.end(s, reason)

    def _start_something(self) -> bool:
        """Start a waiting sequence, or else a prefetch, when nothing runs; False if none can."""
        if self.waiting:
            return self._unblock()
        return bool(self._queues.background) and self._background.start()

    def _unblock(self) -> bool:
        """Start the most urgent waiting sequence when nothing runs; abort it if it never fits.

        Does nothing and returns False while a sequence waits for blocks from disk. When none does,
        the most urgent sequence is ready, because the sequences in its `after` have the same
        priority and arrived earlier.
        """
        if any(s.restore is not None and not s.restore.done for s in self.waiting):
            return False
        first = min(self.waiting, key=lambda s: s.urgency)
        while not self._admission.start(first, self.waiting, self.running):
            if not self._queues.reclaim(first):
                self.abort(first, TOO_SMALL)
                break
        return True


def _computed(plan: Plan) -> dict[str, int]:
    """Return by sequence id how many tokens a plan computes, without drafted tokens."""
    if isinstance(plan, Extend):
        return {row.id: len(row.tokens) - row.drafted for row in plan.rows}
    return dict.fromkeys(plan.ids, 1)
