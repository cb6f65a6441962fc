"""Admission: Algorithm 1 of the SGLang paper, with three additions.

- *Priority*: sequences of a higher priority that can start do so before any sequence of a lower
  priority.
- *In-flight sharing*: a sequence that shares an uncached prefix with a running prefill waits until
  that prefix is in the tree, so that many requests with one prefix compute it once. A sequence
  whose prefix is being read from the disk cache waits too.
- *Ageing*: a sequence passed over by `max_passes` later arrivals of its own priority goes next.
  Until it starts, no sequence of the same or a lower priority is admitted.

Of the sequences that run, `divide` says how many tokens each computes in the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import common_prefix
from sgl_mlx.runtime.cache.restores import Restores
from sgl_mlx.runtime.scheduler.cuts import MOST_BRANCHES, Cuts, SnapshotPolicy
from sgl_mlx.runtime.scheduler.plan import Row
from sgl_mlx.runtime.scheduler.policy import policy_named
from sgl_mlx.runtime.scheduler.sequence import Sequence

_ALTERNATIVES_COST = 4
"""Cost of scoring a prompt token with its likeliest tokens, relative to scoring it alone (3.4 as
measured on a CPU with a vocabulary of 49,152)."""


@dataclass(frozen=True)
class SchedulerLimits:
    """Limits and policy of the scheduler.

    Args:
        max_running: most sequences that run at once.
        step_tokens: most tokens computed in one step (prefill chunks plus decode tokens).
        score_tokens: most prompt tokens scored in one step; bounds the logits in memory.
        epoch_steps: most decode steps over fixed rows before their KV is written to the pool.
        policy: name of the order of admission; see `policy.POLICIES`.
        max_passes: most later arrivals of the same priority that may start before a sequence that
            waits.
        share_threshold: fewest shared uncached tokens for which a sequence waits for a running
            prefill. A sequence whose whole prompt is shared always waits.
        decode_margin: slots kept free for each running sequence when one more is admitted.
        most_held: most slots that running sequences may hold together when one more is admitted;
            None for no limit. Bounds what decoding copies out of the pool.
        in_flight_sharing: False lets no sequence wait for a running prefill.
        snapshots: where a model with recurrent layers leaves snapshots of its state.
    """

    max_running: int = 64
    step_tokens: int = 512
    score_tokens: int = 256
    epoch_steps: int = 64
    policy: str = "lpm"
    max_passes: int = 64
    share_threshold: int = 8
    decode_margin: int = 16
    most_held: int | None = None
    in_flight_sharing: bool = True
    snapshots: SnapshotPolicy = field(default_factory=SnapshotPolicy)


@dataclass
class Counters:
    """Exact counts of the scheduler since the start; the same on every device.

    Attributes:
        prompt_tokens: tokens of all prompts.
        cached_tokens: prompt tokens whose KV was in the cache when their sequence was admitted.
        computed_tokens: prompt tokens whose KV was computed.
        decode_tokens: output tokens whose KV was computed.
        steps: steps computed.
        decode_passes: steps that only decode, one token for each sequence.
        decode_rows: sequences in all `decode_passes` together; each pass counts its own.
        longest_step: most tokens of one step that prefills or verifies drafts.
        peak_slots: most pool slots that running requests and cached prefixes ever held together.
        drafted_tokens: drafted tokens that were verified.
        accepted_tokens: drafted tokens that were accepted.
        preemptions: how often a running sequence lost its slots to another and had to wait again;
            preempted prefetches are not counted.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    decode_tokens: int = 0
    steps: int = 0
    decode_passes: int = 0
    decode_rows: int = 0
    longest_step: int = 0
    peak_slots: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0


class Admission:
    """The part of the scheduler that starts waiting sequences, with slots for the whole prompt."""

    def __init__(
        self,
        cache: PrefixCache,
        restores: Restores | None,
        limits: SchedulerLimits,
        counters: Counters,
    ) -> None:
        self._cache = cache
        self._restores = restores
        self._counters = counters
        self._limits = limits
        self._order = policy_named(limits.policy)
        self._cuts: Cuts | None = None
        if cache.snapshots is not None:
            self._cuts = Cuts(limits.snapshots, limits.share_threshold)

    def limit(self, limits: SchedulerLimits) -> None:
        """Replace the numeric limits, not the policies; sequences that run already go on."""
        self._limits = limits

    def admit(self, waiting: list[Sequence], running: list[Sequence]) -> None:
        """Move sequences from `waiting` to `running` as far as limits and free slots allow."""
        admitted = True
        while admitted and self._has_room(waiting, running):
            admitted = self._admit_from(self._candidates(waiting, running), waiting, running)

    def start(self, s: Sequence, waiting: list[Sequence], running: list[Sequence]) -> bool:
        """Admit `s` now; return False, with the queues unchanged, if its prompt does not fit."""
        if not self._open(s, waiting, running):
            return False
        self._move(s, waiting, running)
        return True

    def _admit_from(
        self, candidates: list[Sequence], waiting: list[Sequence], running: list[Sequence]
    ) -> bool:
        """Admit candidates in order; return True if candidates should be listed and tried again.

        Admission stops at the first sequence that does not fit. If smaller sequences went before
        that sequence, it might never start.
        """
        admitted = False
        for s in candidates:
            if not self._has_room(waiting, running):
                return False
            if self._waits(s, running) or self._restoring(s):
                continue
            if not self.start(s, waiting, running):
                return False
            admitted = True
            if self._aged(waiting):
                return True
        return admitted

    def _has_room(self, waiting: list[Sequence], running: list[Sequence]) -> bool:
        step = sum(s.pending for s in running)
        limits = self._limits
        return bool(waiting) and len(running) < limits.max_running and step < limits.step_tokens

    def _candidates(self, waiting: list[Sequence], running: list[Sequence]) -> list[Sequence]:
        """List the sequences that may start now, in order of admission."""
        aged = self._aged(waiting)
        if aged is None:
            return self._ranked(waiting, running)
        higher = [s for s in waiting if s.priority > aged.priority]
        return [*self._ranked(higher, running), aged]

    def _aged(self, waiting: list[Sequence]) -> Sequence | None:
        """Return the most urgent ready sequence that `max_passes` others passed over, or None."""
        aged = [s for s in waiting if s.passed_over >= self._limits.max_passes and s.ready]
        return min(aged, key=lambda s: s.urgency, default=None)

    def _ranked(self, waiting: list[Sequence], running: list[Sequence]) -> list[Sequence]:
        """List the ready sequences by priority, and by the policy within one priority.

        Sequences that still wait for a running prefill are left out.
        """
        ready = [s for s in waiting if s.ready and not self._still_waits(s, running)]
        if len(ready) < 2:
            return ready
        cached: dict[str, int] = {}
        for s in ready:
            cached[s.id] = self._reusable(s)
        return sorted(self._order(ready, cached), key=lambda s: -s.priority)

    def _still_waits(self, s: Sequence, running: list[Sequence]) -> bool:
        if s.waits_for is None:
            return False
        leader, length = s.waits_for
        if leader.finish_reason is None and leader in running and leader.computed < length:
            return True
        s.waits_for = None
        return False

    def _waits(self, s: Sequence, running: list[Sequence]) -> bool:
        """Return True if `s` should wait for a running prefill, which is then in `s.waits_for`.

        It waits if the prefill will compute enough of the tokens that `s` begins with. With
        recurrent layers, only tokens up to a snapshot count; `Cuts.join` may add one for `s`.
        """
        if not self._limits.in_flight_sharing:
            return False
        cached = self._reusable(s)
        for leader in running:
            if leader.prefilling and leader.namespace == s.namespace:
                common = common_prefix(leader.key, s.key, 0)
                shared = min(common, s.match_limit)
                if self._cuts is not None:
                    shared = self._cuts.join(leader, s, cached, common)
                enough = 1 if common == len(s.key) else self._limits.share_threshold
                if shared - cached >= enough and leader.computed < shared:
                    self._pause(leader, shared)
                    s.waits_for = (leader, shared)
                    return True
        return False

    def _pause(self, leader: Sequence, length: int) -> None:
        """Let a prefill pause after `length` tokens, if window slots are scarce.

        Without the pause, window slots before that place could be freed, and sequences that wait
        for the first `length` tokens would not find the whole window before their end.
        """
        windows = self._cache.windows
        if windows is not None and windows.short and len(leader.cuts) < MOST_BRANCHES:
            leader.cuts.add(length)

    def _restoring(self, s: Sequence) -> bool:
        """Begin to read the prompt from the disk cache; return True until the read is done."""
        if self._restores is None:
            return False
        if s.restore is None:
            s.restore = self._restores.begin(s.key[: s.match_limit], s.namespace)
        return s.restore is None or not s.restore.done

    def _reusable(self, s: Sequence) -> int:
        """Return how many leading tokens a sequence could reuse from the cache now."""
        reusable = self._cache.reusable(s.key, s.namespace, s.match_limit, s.match_node)
        cached, s.match_node = reusable
        return cached

    def _open(self, s: Sequence, waiting: list[Sequence], running: list[Sequence]) -> bool:
        """Lock the cached prefix and take slots for the other tokens; False if too few are free."""
        if s.after:
            s.join()
        if self._restores is not None and s.restore is not None:
            self._restores.finish(s.restore)
        holding = self._cache.open(s.key[: self._usable(s)], s.namespace)
        margin = self._limits.decode_margin * (len(running) + 1) if running else 0
        need = len(s.tokens) - holding.shared
        room = self._cache.available
        if running and self._limits.most_held is not None:
            room = min(room, self._limits.most_held - self._cache.in_use)
        fits = need + margin <= room and self._cache.begin(holding)
        if self._cache.windows is not None:
            soon = min(need, self._limits.step_tokens) if running else min(need, 1)
            fits = fits and soon + margin <= self._cache.windows.available
        if not fits or not self._cache.extend(holding, need):
            self._cache.close(holding)
            return False
        s.holding, s.computed, s.restore = holding, holding.shared, None
        if self._cuts is not None:
            matched, _ = self._cache.tree.match_length(s.key, s.namespace)
            self._cuts.place(s, min(matched, s.match_limit), waiting)
        if s.cached_tokens is None:
            s.cached_tokens = s.computed
            self._counters.prompt_tokens += s.prompt_length
            self._counters.cached_tokens += s.cached_tokens
        return True

    def _usable(self, s: Sequence) -> int:
        """Return how many leading tokens may come from the cache, never a part of a picture."""
        if not s.pictures:
            return s.match_limit
        whole, limit = -1, s.match_limit
        while whole != limit:  # layers with a window may allow less at a picture's start
            cached, _ = self._cache.reusable(s.key, s.namespace, limit)
            whole, limit = limit, s.whole_pictures(min(cached, limit))
        return limit

    @staticmethod
    def _move(s: Sequence, waiting: list[Sequence], running: list[Sequence]) -> None:
        waiting.remove(s)
        running.append(s)
        for other in waiting:
            if other.arrival < s.arrival and other.priority == s.priority and other.ready:
                other.passed_over += 1


@dataclass(frozen=True)
class Share:
    """One sequence's part of a step: its next `count` tokens, and the drafted tokens after them."""

    sequence: Sequence
    count: int
    drafted: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.count + len(self.drafted)

    def row(self) -> Row:
        """Make the batch row."""
        s = self.sequence
        return s.row(self.count, s.computed + self.tokens, self.drafted)

    def cut(self, tokens: int) -> Share:
        """Return the part for the first `tokens` tokens, drafted ones included."""
        count = min(self.count, tokens)
        return replace(self, count=count, drafted=self.drafted[: tokens - count])


def divide(
    sequences: Iterable[Sequence],
    drafts: Mapping[str, tuple[int, ...]],
    limits: SchedulerLimits,
) -> list[Share]:
    """Divide a step: decoding sequences first, with their drafts, then prompt chunks.

    All shares together keep to `step_tokens` and `score_tokens`. A scored token with likeliest
    alternatives counts as `_ALTERNATIVES_COST`, because finding them sorts the vocabulary.
    """
    room, score_room = limits.step_tokens, limits.score_tokens
    shares: list[Share] = []
    for s in sorted(sequences, key=lambda s: s.prefilling):
        count = min(s.until_cut, len(s.table) - s.computed, room)
        if s.logprob_start is not None:
            cost = _ALTERNATIVES_COST if s.params.top_logprobs_num else 1
            unscored = max(s.logprob_start - 1 - s.computed, 0)
            count = min(count, unscored + max(score_room // cost, min(score_room, 1)))
            score_room = max(score_room - cost * max(count - unscored, 0), 0)
        if count > 0:
            drafted = drafts.get(s.id, ())[: len(s.table) - s.computed - count]
            shares.append(Share(s, count, drafted))
            room -= shares[-1].tokens
    return shares
