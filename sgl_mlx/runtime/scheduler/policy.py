"""Orders of admission. Each policy is a pure function of the queue.

`lpm` is Algorithm 1 of the SGLang paper (longest cached prefix first); `dfs-weight` walks the
tree depth first, the branch with more waiting requests first (Theorem 3.1: a depth-first order
has the optimal hit rate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.scheduler.sequence import Sequence

Policy = Callable[[list[Sequence], dict[str, int]], list[Sequence]]
"""Orders waiting sequences, given the length of each one's cached prefix by id."""


def fcfs(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order by arrival: first come, first served."""
    return sorted(waiting, key=lambda s: s.arrival)


def lpm(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order by cached prefix, the longest first, ties by arrival."""
    return sorted(waiting, key=lambda s: (-cached[s.id], s.arrival))


def shuffled(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Shuffle, the same way for the same requests (the ablation's baseline)."""
    return sorted(waiting, key=lambda s: hash((s.arrival, 0)))  # of integers: the same every run


def dfs_weight(waiting: list[Sequence], cached: dict[str, int]) -> list[Sequence]:
    """Order depth-first over the tree, subtrees with more waiting requests first.

    At each node the requests that go further down the tree come before those that leave it, and
    on one edge those that go further along come first: what is cached is used up before anything
    new may push it out.
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
    """List the nodes on a prompt's way down the tree, including an edge that it leaves half way."""
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
    """Find a policy; raises `InvalidParamsError` that lists them for an unknown name."""
    try:
        return POLICIES[name]
    except KeyError:
        known = ", ".join(POLICIES)
        raise InvalidParamsError(f"unknown schedule policy {name!r}; known are {known}") from None
