"""Recurrent states in the second tier (the disk cache): each snapshot is a file of its own.

The key of a snapshot is a digest of its exact prefix, of any length. Besides the state, the file
has the KV of the tokens after the prefix's last whole block. So the blocks and the snapshot
together restore the whole prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

from sgl_mlx.runtime.cache.radix import Node
from sgl_mlx.runtime.cache.tier import Found, SpillState, Tier


class StateTier:
    """Keys and look-up of the snapshots in the second tier's store, as `Tier` has for blocks of KV.

    Args:
        tier: the second tier; snapshots go to the same store as its blocks.
    """

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._layers = tier.layers

    def spill(self, node: Node, namespace: Hashable) -> SpillState | None:
        """Make the transfer that keeps a node's snapshot.

        Returns:
            The transfer; None if the store has the snapshot already, or the namespace is neither
            `PLAIN` nor bytes.
        """
        path = list(node.path())[::-1]
        tokens = tuple(t for n in path for t in n.tokens)
        key = next((key for n, key in self._keys(tokens, namespace) if n == node.depth), None)
        if key is None or self._tier.store.has(key):
            return None
        slots = [slot for n in path for slot in n.slots]
        return SpillState(key, node.state, tuple(slots[self.tail(node.depth) :]))

    def find(
        self, tokens: tuple[int, ...], namespace: Hashable, reusable: int, cached: int
    ) -> Found | None:
        """Find the longest prefix of `tokens` that the store's snapshots and blocks can restore.

        Args:
            reusable: how many tokens can be reused without the store.
            cached: how many tokens have KV in the pool, with a snapshot or without.

        Returns:
            The prefix; None if it has fewer than `Tier.worthwhile` tokens more than can be reused
            anyway.
        """
        tier, known = self._tier, self._tier.store.keys()
        if len(tokens) - reusable < tier.worthwhile or not known:
            return None
        first, blocks = cached // tier.size, list(tier.keys(tokens, namespace))
        end = first
        while self._layers and end < len(blocks) and blocks[end] in known:
            end += 1
        reach = max(cached, end * tier.size)
        found = None
        for length, key in self._keys(tokens, namespace):
            if length - reusable >= tier.worthwhile and key in known:
                if self.needs(length) > reach:
                    break
                found = length, key
        tier.lookups.hits += found is not None
        tier.lookups.misses += found is None
        if found is None:
            return None
        length, key = found
        wanted = blocks[first : self.needs(length) // tier.size]
        return Found(length, first * tier.size, wanted, [key])

    def needs(self, length: int) -> int:
        """Return how many of the first `length` tokens have KV in blocks, not with the snapshot."""
        return length // self._tier.size * self._tier.size if self._layers else 0

    def tail(self, length: int) -> int:
        """Return the index of the first token whose KV is with the snapshot; `length` if none."""
        return self.needs(length) if self._layers else length

    def _keys(self, tokens: tuple[int, ...], namespace: Hashable) -> Iterator[tuple[int, str]]:
        """Yield each prefix's length and snapshot key, if the namespace is `PLAIN` or bytes."""
        name = self._tier.name_of(namespace)
        if name is None:
            return
        digest = hashlib.blake2b(b"state" + name, digest_size=20)
        for i, token in enumerate(tokens):
            digest.update(b"%d," % token)
            yield i + 1, digest.hexdigest()
