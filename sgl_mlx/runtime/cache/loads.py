"""Loads from the second tier (the disk cache): the tokens of a finished reading enter the tree.

The runner copies their KV into the pool before it computes the next plan.
"""

from __future__ import annotations

from collections.abc import Hashable

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.state_tier import StateTier
from sgl_mlx.runtime.cache.tier import Load, LoadState
from sgl_mlx.runtime.cache.window_tier import WindowTier


def load_blocks(
    cache: PrefixCache, tokens: tuple[int, ...], namespace: Hashable, start: int, reading: int
) -> int | None:
    """Add `tokens` to the tree, with the KV of `tokens[start:]` loaded from a finished reading.

    Args:
        namespace: the namespace of the tokens in the tree; see `radix`.
        start: number of leading tokens that are not in the reading.
        reading: id of the reading (`tier.Reading`).

    Returns:
        How many tokens will be loaded before the next plan runs; 0 if the tree has all `tokens`
        already, or lacks a token before `start`; None, with nothing changed, if there are too few
        slots.
    """
    holding = cache.open_cached(tokens, namespace)
    present = holding.shared
    missing = len(tokens) - present if present >= start else 0
    fits = cache.extend(holding, missing)
    if fits and missing:
        slots = tuple(holding.table[present:])
        cache.before_next_plan(Load(slots, reading, present - start))
        cache.share(holding, tokens)
    cache.close(holding)
    return missing if fits else None


def load_snapshot(
    cache: PrefixCache,
    states: StateTier,
    tokens: tuple[int, ...],
    namespace: Hashable,
    reading: int,
) -> int | None:
    """Make a snapshot at the end of `tokens`, loaded from a finished reading.

    Args:
        namespace: the namespace of the tokens in the tree; see `radix`.
        reading: id of the reading (`tier.Reading`), which also has the KV of the last tokens.

    Returns:
        How many tokens enter the tree with the snapshot; None, with nothing changed, if there are
        too few slots, if the tree has this snapshot, or lacks a block before it.
    """
    assert cache.snapshots is not None, "a snapshot for a model of attention alone"
    tail = states.tail(len(tokens))
    holding = cache.open_cached(tokens, namespace)
    present = holding.shared
    missing = len(tokens) - present
    whole = present >= states.needs(len(tokens))
    wanted = whole and not (holding.node and not missing and holding.node.state)
    fits = wanted and cache.snapshots.adopt(holding) and cache.extend(holding, missing)
    if fits:
        slots = tuple(holding.table[max(present, tail) :])
        load = LoadState(holding.state, slots, reading, max(present - tail, 0))
        cache.before_next_plan(load)
        cache.share(holding, tokens)
        cache.snapshots.end(holding, keep=True)
    cache.close(holding)
    return missing if fits else None


def load_window(
    cache: PrefixCache,
    tier: WindowTier,
    tokens: tuple[int, ...],
    namespace: Hashable,
    reading: int,
) -> bool:
    """Give the tree window slots for the last of `tokens`, filled from a finished reading.

    Args:
        namespace: the namespace of the tokens in the tree; see `radix`.
        reading: id of the reading (`tier.Reading`), which begins at `WindowTier.first`.

    Returns:
        True; False, with nothing changed, if there are too few slots, if the tree has these slots
        already, or lacks KV of the other layers.
    """
    assert cache.windows is not None, "a window for layers that share their slots"
    node, _ = cache.tree.match(tokens, namespace)
    if node.depth < len(tokens):
        return False
    slots = cache.windows.restore(node, tier.first(len(tokens)))
    if any(slots):
        cache.before_next_plan(Load(tuple(slots), reading, windows=True))
    return any(slots)
