"""The queues of sequences, and the bookkeeping of their KV slots. Integers only, no tensors.

The scheduler decides what to compute. The queues record which sequences wait, run or have ended,
and which slots each of them holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import Counters
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.speculator import Speculator

TOO_SMALL = "the KV pool is too small for this request"


class Queues:
    """The waiting, running, background (prefetch) and ended sequences.

    Attributes:
        ended: sequences whose slots `settle` has yet to release.
        changed: True if admission should be tried again.
        next_deadline: no sequence's deadline is earlier than this time.
        keeps_states: True if a sequence that ends or is preempted leaves a snapshot of its
            recurrent state.
    """

    def __init__(
        self,
        cache: PrefixCache,
        counters: Counters,
        keeps_states: bool = True,
        speculator: Speculator | None = None,
    ) -> None:
        self.cache = cache
        self._speculator = speculator
        self.keeps_states = keeps_states
        self._counters = counters
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.background: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.changed = False
        self.next_deadline = inf
        self._arrivals = 0

    def add(self, s: Sequence) -> None:
        """Queue a sequence; before it, queue the sequences in its `after`, at its priority."""
        for needed in s.after:
            needed.consumer, needed.priority = s, s.priority
            self.add(needed)
        self._arrivals += 1
        s.arrival = self._arrivals
        if s.deadline is not None:
            self.next_deadline = min(self.next_deadline, s.deadline)
        (self.background if s.background else self.waiting).append(s)
        self.changed = True

    def abort(self, s: Sequence, message: str | None = None) -> None:
        """Abort a sequence, unless it has ended; the KV it computed stays in the cache."""
        if s.finish_reason is None:
            self.end(s, FinishReason("abort", message=message))

    def expire(self, clock: Callable[[], float]) -> None:
        """Abort the sequences whose deadline has passed."""
        if self.next_deadline == inf or self.next_deadline > (now := clock()):
            return
        live = [*self.waiting, *self.running, *self.background]
        self.next_deadline = inf
        for s in live:
            if s.deadline is not None and s.deadline > now:
                self.next_deadline = min(self.next_deadline, s.deadline)
            elif s.deadline is not None:
                doing = "running" if s in self.running else "waiting"
                count = len(s.tokens) - s.prompt_length
                self.abort(
                    s,
                    f"the deadline passed while the request was {doing}, with {count} of at most "
                    f"{s.params.max_new_tokens} tokens generated",
                )

    def sequences(self) -> Iterator[Sequence]:
        """Yield all sequences that may hold slots."""
        stack = [*self.waiting, *self.running, *self.background, *self.ended]
        seen = {id(s) for s in stack}
        while stack:
            s = stack.pop()
            yield s
            for needed in s.after:
                if id(needed) not in seen:
                    seen.add(id(needed))
                    stack.append(needed)

    def check(self) -> None:
        """Assert that each slot is free, cached or held exactly once, and that counts agree."""
        sequences = list(self.sequences())
        self.cache.check(s.holding for s in sequences if s.holding is not None)
        for s in sequences:
            if s.holding is not None:
                assert s.holding.shared <= s.computed <= len(s.table)
            assert s.computed <= len(s.tokens)

    def end(self, s: Sequence, reason: FinishReason) -> None:
        """Move a sequence to `ended` and call its output's `finish`.

        Unfinished sequences in its `after` are aborted; so is its consumer if `reason` is an abort.
        """
        s.finish_reason, s.restore = reason, None
        for queue in (self.waiting, self.running, self.background):
            if s in queue:
                queue.remove(s)
        self.ended.append(s)
        for needed in s.after:
            self.abort(needed, "the request that this was computed for has ended")
        if s.consumer is not None and reason.type == "abort":
            self.abort(s.consumer, reason.message)
        s.output.finish(reason)

    def settle(self) -> None:
        """Put the KV of ended sequences into the tree; release the slots of those not `held`.

        The KV of an ended sequence's last tokens may not be in the pool yet. That is safe: only a
        plan other than a `Decode` of the open epoch can read or reuse the slots, and the runner
        writes the epoch's KV to the pool before it runs such a plan.
        """
        for s in self.ended:
            self.changed = True
            if self._speculator is not None:
                self._speculator.ended(s)
            if s.holding is not None:
                self._share_computed(s)
                self._leave_state(s)
            if not s.held:
                self._release(s)
        self.ended.clear()

    def _release(self, s: Sequence) -> None:
        s.held = False
        if s.finish_reason is None:
            return
        if s.holding is not None:
            self.cache.close(s.holding)
            s.holding = None
        for needed in s.after:
            self._release(needed)

    def _share_computed(self, s: Sequence) -> None:
        assert s.holding is not None
        if s.computed > s.holding.shared:
            self.cache.share(s.holding, s.key[: s.computed])

    def _leave_state(self, s: Sequence) -> None:
        """Take the state slot from a sequence that stops; keep its state if it can be reused.

        A snapshot beyond `match_limit` is not kept: a sequence with the same tokens could not
        start from it.
        """
        snapshots = self.cache.snapshots
        if snapshots is not None and s.holding is not None:
            useful = self.keeps_states and s.computed <= s.match_limit
            snapshots.end(s.holding, keep=useful)

    def reserve(self, s: Sequence, count: int) -> None:
        """Reserve slots for the next `count` tokens of a running sequence.

        If there are too few, reserve one slot at least. To free it, the least urgent running
        sequences are preempted, perhaps `s` itself. If `s` runs alone, branches held for less
        urgent requests are given up; if no other request holds branches, `s` is aborted.
        """
        assert s.holding is not None
        missing = s.computed + count - len(s.table)
        if missing <= 0 or self.cache.extend(s.holding, missing):
            return
        while len(s.table) <= s.computed and not self.cache.extend(s.holding, 1):
            self._make_room(s)
            if s not in self.running:
                return

    def reserve_window(self, s: Sequence, count: int) -> int:
        """Reserve window slots for the next tokens of a sequence, if layers have such slots.

        Slots for one token at least are reserved; for them, sequences are preempted as in
        `reserve`.

        Returns:
            For how many of the next `count` tokens there are slots; 0 if `s` does not run.
        """
        windows = self.cache.windows
        while windows is not None and s in self.running:
            assert s.holding is not None
            held = s.holding.behind + len(s.holding.window) - s.computed
            granted = min(count, held + windows.available)
            if granted > 0 and windows.reserve(s.holding, s.computed + granted):
                return granted
            self._make_room(s)
        return count if s in self.running else 0

    def _make_room(self, s: Sequence) -> None:
        """Free slots for `s`: preempt the least urgent sequence, or give up branches, or abort.

        If only more urgent requests hold branches, `s` itself is preempted, so that they go first.
        """
        if len(self.running) > 1:
            self.retract(max(self.running, key=lambda r: r.urgency))
        elif self.reclaim(s):
            return
        elif self._holders(s):
            self.retract(s)
        else:
            self.abort(s, TOO_SMALL)

    def retract(self, s: Sequence) -> None:
        """Preempt a running sequence: it waits again, and the KV it computed goes to the cache."""
        assert s.holding is not None
        self._counters.preemptions += not s.background
        self._share_computed(s)
        self._leave_state(s)
        self.cache.close(s.holding)
        s.holding, s.computed, s.match_node = None, 0, None
        self.running.remove(s)
        (self.background if s.background else self.waiting).append(s)

    def reclaim(self, s: Sequence) -> bool:
        """Free slots for `s` by giving up the branches that another waiting request holds.

        Branches are the computed sequences in a waiting sequence's `after`. The least urgent
        request that has branches loses them; they are computed again later. Call this method only
        when nothing else can run. A more urgent request than that of `s` loses nothing, or two
        requests could take each other's branches for ever.

        Returns:
            True; False, with nothing freed, if no less urgent request holds branches.
        """
        mine = s.purpose.urgency
        losers = [w for w in self._holders(s) if w.purpose.urgency > mine]
        if not losers:
            return False
        self._forget_branches_of(max(losers, key=lambda w: w.urgency))
        return True

    def _holders(self, s: Sequence) -> list[Sequence]:
        """List waiting sequences that hold branches and belong to another request than `s`."""
        others = [w for w in self.waiting if w.purpose is not s.purpose]
        return [w for w in others if any(needed.holding for needed in w.after)]

    def forget_branches(self) -> None:
        """Give up all branches held for waiting requests; they are queued to be computed again."""
        for s in self.waiting:  # the loop appends to the list: branches of branches too
            self._forget_branches_of(s)

    def _forget_branches_of(self, s: Sequence) -> None:
        for needed in s.after:
            if needed.holding is not None:
                self.cache.close(needed.holding)
                needed.holding, needed.computed, needed.match_node = None, 0, None
                needed.finish_reason = None
                self.waiting.append(needed)

    def end_complete(self) -> bool:
        """End running sequences with no token left to compute; return True if there were any."""
        complete = [s for s in self.running if s.pending == 0]
        for s in complete:
            self.end(s, FinishReason("length", length=0))
        return bool(complete)
