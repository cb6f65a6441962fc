"""Cuts: where the prefill of a model with recurrent layers pauses to leave a snapshot.

A prefix can be reused only where a snapshot of the recurrent state was taken, so snapshots belong
where prompts will branch. A program shows these places before anything is computed: prompts that
wait together share their common prefixes, choices and samples share their whole prompt, and a part
of a prompt ends where another document may follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from sgl_mlx.runtime.cache.radix import common_prefix
from sgl_mlx.runtime.scheduler.sequence import Sequence

_PART = 64
"""Fewest tokens between two cuts at ends of a prompt's parts; shorter parts count together."""


MOST_BRANCHES = 8
"""Most places where waiting sequences branch off that become cuts of one prefill; the most common
ones are taken. Sequences that arrive later may add cuts, up to twice this number in all."""


@dataclass(frozen=True)
class SnapshotPolicy:
    """The rule for where prompts leave snapshots of their recurrent state.

    Args:
        kind: "program" takes snapshots where prompts branch; "every" at multiples of `stride`;
            "off" takes none, so that nothing is reused.
        stride: a number of tokens. With "program", a stretch longer than `stride` between two
            snapshots gets more of them, at multiples of `stride`.
    """

    kind: Literal["program", "every", "off"] = "program"
    stride: int = 512

    @property
    def keeps_ends(self) -> bool:
        """True if a sequence that ends or is preempted leaves a snapshot at its end."""
        return self.kind != "off"


class Cuts:
    """The part of admission that chooses the cuts of sequences that start.

    Args:
        threshold: fewest tokens that a cut must save a later prompt from computing again.
    """

    def __init__(self, policy: SnapshotPolicy, threshold: int) -> None:
        self._policy = policy
        self._threshold = threshold

    def place(self, s: Sequence, matched: int, waiting: Iterable[Sequence]) -> None:
        """Set `s.cuts`, the cuts of a sequence that starts with `s.computed` cached tokens.

        Args:
            matched: how many leading tokens have KV in the cache, with or without a snapshot.
            waiting: the sequences that wait; `s` may be among them.
        """
        start, limit, stride = s.computed, s.match_limit, self._policy.stride
        found: set[int] = set()
        if self._policy.kind == "every":
            found.update(range(stride, limit + 1, stride))
        elif self._policy.kind == "program":
            shared = Counter(self._branch(s, other) for other in waiting if other is not s)
            branches = {n for n, _ in shared.most_common(MOST_BRANCHES)}
            branches |= {*_spaced(s.parts, start), limit, len(s.tokens) - 1}
            found = {n for n in branches if n >= start + self._threshold}
            found.add(matched)  # an earlier prompt shared this much, so more may
        cuts = {s.whole_pictures(n) for n in found if n <= limit}
        s.cuts = {n for n in cuts if start < n < len(s.tokens)}
        if self._policy.kind == "program":
            s.cuts |= {s.whole_pictures(n) for n in self._fillings(start, limit, s.cuts)}

    def join(self, leader: Sequence, s: Sequence, cached: int, common: int) -> int:
        """Return how many tokens `s` can reuse from a snapshot that `leader` is about to take.

        With the policy "program", a leader that has not reached the end of the common prefix yet
        gets a cut there, if that saves `s` enough tokens.

        Args:
            leader: a running sequence that is being prefilled.
            cached: how many tokens of `s` are reusable now.
            common: length of the common prefix of `leader` and `s`.

        Returns:
            The number of tokens; 0 if `leader` will take no snapshot within the common prefix.
        """
        shared = leader.whole_pictures(min(common, s.match_limit, leader.match_limit))
        program = self._policy.kind == "program"
        fits = shared > leader.computed and len(leader.cuts) < 2 * MOST_BRANCHES
        if program and fits and shared >= cached + self._threshold:
            leader.cuts.add(shared)
        return max((n for n in leader.cuts if leader.computed < n <= shared), default=0)

    def _branch(self, s: Sequence, other: Sequence) -> int:
        """Return the length of the prefix that both sequences could reuse; 0 if there is none."""
        if other.namespace != s.namespace:
            return 0
        return min(common_prefix(s.key, other.key, 0), s.match_limit, other.match_limit)

    def _fillings(self, start: int, limit: int, cuts: Iterable[int]) -> Iterable[int]:
        """Yield the stride's multiples in every stretch between cuts that exceeds the stride."""
        stride = self._policy.stride
        for a, b in pairwise(sorted({start, *cuts, limit})):
            if b - a > stride:
                yield from range(a // stride * stride + stride, b, stride)


def _spaced(ends: Iterable[int], start: int) -> Iterable[int]:
    """Yield the ends in order, but none less than `_PART` after `start` or the previous end."""
    for end in sorted(ends):
        if end >= start + _PART:
            start = end
            yield end
