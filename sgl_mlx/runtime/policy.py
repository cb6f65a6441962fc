"""In which order waiting sequences are admitted. Each policy is a pure function of the queue.

`lpm` is Algorithm 1 of the SGLang paper (longest cached prefix first); `dfs-weight` walks the
tree depth first, the branch with more waiting requests first (Theorem 3.1: a depth-first order
has the optimal hit rate).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.sequence import Sequence

Policy = Callable[[list[Sequence], dict[str, int]], list[Sequence]]
"""Orders waiting sequences, given the length of each one's cached prefix by id."""


def fcfs(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """First come, first served."""
    return sorted(waiting, key=lambda s: s.arrival)


def lpm(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Longest cached prefix first, ties by arrival."""
    return sorted(waiting, key=lambda s: (-cached[s.id], s.arrival))


def shuffled(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """A random order that is the same for the same requests (the ablation's baseline)."""
    return sorted(waiting, key=lambda s: random.Random(s.arrival).random())


def dfs_weight(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Depth-first over the tree, subtrees with more waiting requests first."""
    paths = {s.id: _path(s) for s in waiting}
    weight = Counter(node for path in paths.values() for node in path)
    rank = {node: i for i, node in enumerate(weight)}

    def key(s: Sequence) -> tuple[list[tuple[int, int]], int]:
        return [(-weight[node], rank[node]) for node in paths[s.id]], s.arrival

    return sorted(waiting, key=key)


def _path(s: Sequence) -> list[int]:
    nodes: Iterable[object] = s.match_node.path() if s.match_node else ()
    return [id(node) for node in nodes][::-1]


POLICIES: dict[str, Policy] = {
    "lpm": lpm,
    "dfs-weight": dfs_weight,
    "fcfs": fcfs,
    "random": shuffled,
}


def policy_named(name: str) -> Policy:
    """Raises `InvalidParamsError` listing the policies for an unknown name."""
    try:
        return POLICIES[name]
    except KeyError:
        known = ", ".join(POLICIES)
        raise InvalidParamsError(f"unknown schedule policy {name!r}; known are {known}") from None
