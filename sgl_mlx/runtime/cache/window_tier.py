"""KV of layers with a sliding window in the disk cache, in blocks with keys of their own.

Such layers read only the last tokens before a new one. So the store keeps their blocks only before
places where prompts are likely to go on: where a prompt or an answer ended, or where paths
branched. The blocks of all other layers are kept as in a model without windows. A prefix is
restored up to the last block before such a place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

from sgl_mlx.runtime.cache.radix import Node
from sgl_mlx.runtime.cache.tier import BLOCK, Found, Spill, Tier


def extra_tokens(size: int = BLOCK) -> int:
    """Return how many tokens to keep besides a window, so that the blocks it touches are whole.

    Up to `size - 1` tokens follow the last whole block, and as many precede the window in its first
    block.
    """
    return 2 * (size - 1)


class WindowTier:
    """Keys and look-up of the blocks of windows in the second tier's store.

    Args:
        tier: the second tier; the blocks of windows go to the same store as its own.
        reach: how many tokens before a new token the layers read.
    """

    def __init__(self, tier: Tier, reach: int) -> None:
        self._tier = tier
        self._reach = reach

    def spill(self, node: Node, namespace: Hashable) -> Spill | None:
        """Make the transfer that stores the window before a node's end; None without such blocks.

        The transfer has the blocks that are needed by a prompt of the same tokens, or by a prompt
        that goes on from them. Left out are blocks that the store has, and blocks with a token that
        has no window slot.
        """
        blocks = {} if node.window_end is False else self._whole_blocks(node)
        if not blocks:
            return None
        tokens = tuple(t for n in list(node.path())[::-1] for t in n.tokens)
        keys = {i: key for i, key in enumerate(self._keys(tokens, namespace)) if i in blocks}
        new = [i for i, key in keys.items() if not self._tier.store.has(key)]
        if not new:
            return None
        slots = tuple(slot for i in new for slot in blocks[i])
        return Spill(tuple(keys[i] for i in new), slots, windows=True)

    def find(
        self, tokens: tuple[int, ...], namespace: Hashable, reusable: int, cached: int
    ) -> Found | None:
        """Find the longest prefix of `tokens` that the store can restore with its window.

        Args:
            reusable: how many tokens can be reused without the store.
            cached: how many tokens have KV in the layers without a window.

        Returns:
            The prefix; None if it has fewer than `Tier.worthwhile` tokens more than can be reused
            anyway.
        """
        tier, size, has = self._tier, self._tier.size, self._tier.store.has
        if len(tokens) - reusable < tier.worthwhile:
            return None
        blocks, windows = list(tier.keys(tokens, namespace)), list(self._keys(tokens, namespace))
        start = end = min(cached // size, len(blocks))  # some namespaces have no blocks
        while end < len(blocks) and has(blocks[end]):
            end += 1
        while end * size - reusable >= tier.worthwhile:
            window = windows[self.first(end * size) // size : end]
            if all(map(has, reversed(window))):
                tier.lookups.hits += 1
                return Found(end * size, min(start, end) * size, blocks[start:end], window)
            end -= 1
        tier.lookups.misses += 1
        return None

    def _whole_blocks(self, node: Node) -> dict[int, list[int]]:
        """Return the window slots of the last blocks before a node's end, by the block's number.

        A sequence reads these blocks to go on at the node's end, or one token before it. Blocks
        with a token that has no slot are left out.
        """
        size = self._tier.size
        first, slots = self.first((node.depth - 1) // size * size), list[int]()
        for n in node.path():
            slots = [*[0] * (len(n.tokens) - len(n.window)), *n.window, *slots]
            if node.depth - len(slots) <= first:
                break
        start = node.depth - len(slots)  # position of the first of `slots`
        blocks = {
            i: slots[i * size - start : (i + 1) * size - start]
            for i in range(first // size, node.depth // size)
        }
        return {i: block for i, block in blocks.items() if 0 not in block}

    def first(self, length: int) -> int:
        """Return the start of the first block that must be read to go on after `length` tokens."""
        size = self._tier.size
        return max(length - self._reach, 0) // size * size

    def _keys(self, tokens: tuple[int, ...], namespace: Hashable) -> Iterator[str]:
        """Yield the key of each whole block of tokens, for layers with a window."""
        for key in self._tier.keys(tokens, namespace):
            yield hashlib.blake2b(b"window" + key.encode(), digest_size=20).hexdigest()
