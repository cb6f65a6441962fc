"""Cuts: where the prefill of a model with recurrent layers pauses to leave a snapshot.

A prefix can be reused only where a snapshot of the recurrent state was taken, so snapshots belong
where prompts will branch. A program tells this before anything is computed: prompts that wait
together share their common prefixes, choices and samples share their whole prompt, and a program's
parts end where another document may follow.
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
"""Fewest tokens of a prompt's part, or of several together, that are worth a snapshot."""


_MOST_BRANCHES = 8
"""Most branchings towards waiting sequences for which one prefill pauses; twice as many with those
that arrive later. The most common ones count."""


@dataclass(frozen=True)
class SnapshotPolicy:
    """Where prompts leave snapshots of their recurrent state.

    Args:
        kind: "program" takes them where prompts branch; "every" at multiples of `stride`; "off"
            takes none, so that nothing is reused.
        stride: tokens. With "program", no longer stretch of a prompt stays without a snapshot.
    """

    kind: Literal["program", "every", "off"] = "program"
    stride: int = 512

    @property
    def keeps_ends(self) -> bool:
        """True if a sequence that ends leaves a snapshot there."""
        return self.kind != "off"


class Cuts:
    """The choice of cuts for sequences that start.

    Args:
        threshold: fewest tokens that a snapshot at a branching must save.
    """

    def __init__(self, policy: SnapshotPolicy, threshold: int) -> None:
        self._policy = policy
        self._threshold = threshold

    def place(self, s: Sequence, matched: int, waiting: Iterable[Sequence]) -> None:
        """Choose the cuts of a sequence that starts with `s.computed` cached tokens.

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
            branches = {n for n, _ in shared.most_common(_MOST_BRANCHES)}
            branches |= {*_spaced(s.parts, start), limit, len(s.tokens) - 1}
            found = {n for n in branches if n >= start + self._threshold}
            found.add(matched)  # somebody has come this far before, so others may again
        cuts = {s.whole_pictures(n) for n in found if n <= limit}
        s.cuts = {n for n in cuts if start < n < len(s.tokens)}
        if self._policy.kind == "program":
            s.cuts |= {s.whole_pictures(n) for n in self._fillings(start, limit, s.cuts)}

    def join(self, leader: Sequence, s: Sequence, cached: int, common: int) -> int:
        """Return where `s` can go on from a snapshot that a running `leader` is about to take.

        A leader that has not come to the end of their common prefix yet gets a cut there.

        Args:
            cached: how many tokens of `s` are reusable now.
            common: length of the common prefix of both.
        """
        shared = leader.whole_pictures(min(common, s.match_limit, leader.match_limit))
        program = self._policy.kind == "program"
        fits = shared > leader.computed and len(leader.cuts) < 2 * _MOST_BRANCHES
        if program and fits and shared >= cached + self._threshold:
            leader.cuts.add(shared)
        return max((n for n in leader.cuts if leader.computed < n <= shared), default=0)

    def _branch(self, s: Sequence, other: Sequence) -> int:
        """Return the length of the prefix that two waiting sequences can both start from."""
        if other.namespace != s.namespace:
            return 0
        return min(common_prefix(s.key, other.key, 0), s.match_limit, other.match_limit)

    def _fillings(self, start: int, limit: int, cuts: Iterable[int]) -> Iterable[int]:
        """Yield multiples of the stride in all longer stretches between cuts."""
        stride = self._policy.stride
        for a, b in pairwise(sorted({start, *cuts, limit})):
            if b - a > stride:
                yield from range(a // stride * stride + stride, b, stride)


def _spaced(ends: Iterable[int], start: int) -> Iterable[int]:
    """Yield those ends that are `_PART` tokens or more behind `start` and behind each other."""
    for end in sorted(ends):
        if end >= start + _PART:
            start = end
            yield end
