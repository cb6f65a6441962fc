"""Blocks and their keys."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from sgl_mlx.runtime.cache.node import Node
from sgl_mlx.runtime.cache.radix import PLAIN, RadixTree
from sgl_mlx.runtime.cache.tier import Spill, Tier
from tests.runtime.fakes import FakeStore
from tests.runtime.truth import Kv

TOKENS = tuple(range(100, 120))


def keys(
    tokens: tuple[int, ...], identity: str = "m", size: int = 4, name: Hashable = PLAIN
) -> set[str]:
    """Keys of all blocks of a prompt."""
    spill = spilled(tokens, Tier(FakeStore(), identity, size), name)
    return set(spill.keys) if spill else set()


def spilled(tokens: tuple[int, ...], tier: Tier, namespace: Hashable = PLAIN) -> Spill | None:
    tree, found = RadixTree(), []

    def farewell(node: Node, name: Hashable) -> None:
        found.append(tier.spill(node, name))

    tree.insert(tokens, range(1, len(tokens) + 1), namespace)
    tree.evict(1, farewell)
    return found[0]


def test_equal_beginnings_have_equal_keys_and_nothing_else_does() -> None:
    assert len(keys(TOKENS)) == 5
    assert len(keys(TOKENS) & keys((*TOKENS[:11], 1, 2, 3))) == 2
    assert not keys(TOKENS) & keys(TOKENS[4:])


@pytest.mark.parametrize(
    "other",
    [{"identity": "n"}, {"size": 2}, {"name": b"branch"}],
    ids=["model", "size", "namespace"],
)
def test_another_model_size_or_namespace_has_other_keys(other: dict[str, object]) -> None:
    assert keys(TOKENS, **other)  # type: ignore[arg-type]
    assert not keys(TOKENS) & keys(TOKENS, **other)  # type: ignore[arg-type]


def test_a_namespace_without_a_lasting_name_is_not_kept() -> None:
    assert not keys(TOKENS, name=("image", 3))


def test_a_rest_shorter_than_a_block_is_not_kept() -> None:
    assert not keys(TOKENS[:3])
    assert keys(TOKENS[:7]) == keys(TOKENS[:4])


def test_every_whole_block_goes_with_the_node_that_ends_it() -> None:
    store, tree = FakeStore(), RadixTree()
    tier, spills = Tier(store, "m", 4), []

    def farewell(node: Node, name: Hashable) -> None:
        spills.append(tier.spill(node, name))

    tree.insert(TOKENS[:6], range(1, 7))
    tree.insert(TOKENS[:14], range(1, 15))
    tree.evict(8, farewell)  # tokens 6 to 13
    tree.evict(6, farewell)
    assert [spill.slots for spill in spills] == [tuple(range(5, 13)), (1, 2, 3, 4)]
    assert set(spills[0].keys) | set(spills[1].keys) == keys(TOKENS[:12])


def test_what_the_store_has_is_not_copied_again() -> None:
    store = FakeStore()
    tier = Tier(store, "m", 4)
    first = spilled(TOKENS[:8], tier)
    assert first is not None
    store.blocks = {key: [Kv(0, 0)] for key in first.keys}
    assert spilled(TOKENS[:8], tier) is None
    longer = spilled(TOKENS, tier)
    assert longer is not None
    assert longer.slots == tuple(range(9, 21))


def test_what_is_looked_for_begins_where_the_tree_ends() -> None:
    store = FakeStore()
    tier = Tier(store, "m", 4, worthwhile=8)
    spill = spilled(TOKENS, tier)
    assert spill is not None
    store.blocks = {key: [Kv(0, 0)] for key in spill.keys[1:4]}
    assert tier.find(TOKENS, PLAIN, 0) == []
    assert tier.find(TOKENS, PLAIN, 5) == list(spill.keys[1:4])
    assert tier.find(TOKENS, PLAIN, 8) == list(spill.keys[2:4])
    assert tier.find(TOKENS, PLAIN, 9) == []  # seven tokens: quicker to compute
    assert (tier.lookups.hits, tier.lookups.misses) == (2, 2)
