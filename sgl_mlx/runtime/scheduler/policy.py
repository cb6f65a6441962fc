"""Admission policies: pure functions that order the waiting sequences.

`lpm` is Algorithm 1 of the SGLang paper (longest cached prefix first). `dfs-weight` walks the radix
tree depth first, branches with more waiting requests first; by the paper's Theorem 3.1 a
depth-first order has the optimal hit rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.scheduler.sequence import Sequence

Policy = Callable[[list[Sequence], dict[str, int]], list[Sequence]]
"""A function that orders waiting sequences; its dictionary has cached prefix lengths by id."""


def fcfs(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order by arrival: first come, first served."""
    return sorted(waiting, key=lambda s: s.arrival)


def lpm(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order by length of the cached prefix, longest first; ties by arrival."""
    return sorted(waiting, key=lambda s: (-cached[s.id], s.arrival))


def shuffled(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order pseudo-randomly, the same way in every run; to compare the other policies with."""
    return sorted(waiting, key=lambda s: hash((s.arrival, 0)))  # integers hash alike in every run


def dfs_weight(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order depth first over the radix tree, subtrees with more waiting requests first.

    On one path, requests with longer cached prefixes come first, so that cached KV is used before
    new KV can evict it.
    """
    paths = {s.id: _path(s, cached[s.id]) for s in waiting}
    weight = Counter(node for path in paths.values() for node in path)
    rank = {node: i for i, node in enumerate(weight)}
    leaves_here = (1, 0)

    def key(s: Sequence) -> tuple[list[tuple[int, int]], int, int]:
        branches = [(-weight[node], rank[node]) for node in paths[s.id]]
        return [*branches, leaves_here], -cached[s.id], s.arrival

    return sorted(waiting, key=key)


def _path(s: Sequence, cached: int) -> list[int]:
    """List the `id` of each tree node on a prompt's cached path.

    The last node may match only in part.
    """
    node = s.match_node
    if node is None:
        return []
    path = [id(n) for n in node.path()][::-1]
    return [*path, id(node.children[s.key[node.depth]])] if cached > node.depth else path


POLICIES: dict[str, Policy] = {
    "lpm": lpm,
    "dfs-weight": dfs_weight,
    "fcfs": fcfs,
    "random": shuffled,
}


def policy_named(name: str) -> Policy:
    """Return the policy with this name.

    Raises:
        InvalidParamsError: for an unknown name; the message lists the known ones.
    """
    try:
        return POLICIES[name]
    except KeyError:
        known = ", ".join(POLICIES)
        raise InvalidParamsError(f"unknown schedule policy {name!r}; known are {known}") from None
