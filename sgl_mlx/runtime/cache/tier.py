"""The second tier: which blocks of a prompt it keeps, under which names. Plain integers.

A prefix is kept in blocks of `size` tokens, each under a key that is a digest of everything its
KV depends on: the model, the namespace and all tokens up to the block's end. So equal keys mean
equal KV, blocks are found one after the other without any global structure, and whoever shares
the store shares the blocks. A prompt's end that fills no block is not kept.

The scheduler notes transfers between pool and store as it hands slots out; a plan carries them,
and the runner makes them, in order, before it computes the plan. Until then nothing writes to the
slots of a `Spill`, and nothing reads those of a `Load`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sgl_mlx.runtime.cache.radix import PLAIN, Node

BLOCK = 64
"""Tokens of a block."""
WORTHWHILE = 128
"""Tokens from which reading them beats computing them: some 10 ms against some 100 on a laptop."""


@dataclass(frozen=True)
class Spill:
    """Blocks to copy out before their slots are used for something else.

    Args:
        keys: of the blocks.
        slots: of their tokens, one block after the other.
    """

    keys: tuple[str, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """KV to write into slots.

    Args:
        slots: of consecutive tokens.
        reading: id of the `Reading` that has their KV.
        skip: tokens at the reading's beginning that are not wanted.
    """

    slots: tuple[int, ...]
    reading: int
    skip: int = 0


@dataclass(frozen=True)
class Grow:
    """More slots for the pool, whose KV stays where it is.

    Args:
        slots: the pool's size afterwards; a pool that has them already stays as it is.
    """

    slots: int


Transfer = Spill | Load | Grow


class Reading(Protocol):
    """Blocks being read, by another thread; their KV stays with the store until it is dropped.

    Attributes:
        id: names the reading in a `Load`.
        done: True when the blocks have been read; `count` means nothing before.
        count: how many of the blocks asked for were found, from the first on.
    """

    id: int
    done: bool
    count: int


class BlockStore(Protocol):
    """A store of blocks."""

    def has(self, key: str) -> bool:
        """True if the block is probably there; answers at once."""
        ...

    def read(self, keys: Sequence[str]) -> Reading:
        """Start to read blocks."""
        ...

    def drop(self, reading: int) -> None:
        """Forget a reading whose KV nobody will load."""
        ...


@dataclass
class Lookups:
    """Counts of look-ups of a prompt's uncached part: worth reading (hits) or not."""

    hits: int = 0
    misses: int = 0


class Tier:
    """The names of blocks, over a store of them.

    Args:
        identity: of model, KV type and shapes; blocks of another identity are never found.
        worthwhile: fewer tokens than this are not looked for.
    """

    def __init__(
        self, store: BlockStore, identity: str, size: int = BLOCK, worthwhile: int = WORTHWHILE
    ) -> None:
        self.store = store
        self.size = size
        self.lookups = Lookups()
        self._identity = f"{identity}/{size}/".encode()
        self.worthwhile = worthwhile

    def spill(self, node: Node, namespace: Hashable) -> Spill | None:
        """Name the blocks to keep of a node that is evicted: those whose last token it holds.

        A block that begins in the node's ancestors takes their slots too: they go later.
        """
        size = self.size
        first, last = (node.depth - len(node.tokens)) // size, node.depth // size
        if first == last:
            return None
        path = list(node.path())[::-1]
        tokens = tuple(t for n in path for t in n.tokens)
        slots = [slot for n in path for slot in n.slots]
        named = enumerate(self._keys(tokens, namespace))
        new = [(i, key) for i, key in named if i >= first and not self.store.has(key)]
        if not new:
            return None
        wanted = (slot for i, _ in new for slot in slots[i * size : (i + 1) * size])
        return Spill(tuple(key for _, key in new), tuple(wanted))

    def find(self, tokens: tuple[int, ...], namespace: Hashable, cached: int) -> list[str]:
        """Find the blocks from the one with token `cached` on; none if not worth reading."""
        if len(tokens) - cached < self.worthwhile:
            return []
        found: list[str] = []
        first = cached // self.size
        for i, key in enumerate(self._keys(tokens, namespace)):
            if i >= first:
                if not self.store.has(key):
                    break
                found.append(key)
        if (first + len(found)) * self.size - cached < self.worthwhile:
            self.lookups.misses += 1
            return []
        self.lookups.hits += 1
        return found

    def _keys(self, tokens: tuple[int, ...], namespace: Hashable) -> Iterator[str]:
        """Make a key for each whole block; none in a namespace that has no lasting name."""
        name = b"" if namespace == PLAIN else namespace
        if not isinstance(name, bytes):
            return
        digest = self._identity + name
        size = self.size
        for start in range(0, len(tokens) - size + 1, size):
            block = repr(tokens[start : start + size]).encode()
            digest = hashlib.blake2b(digest + block, digest_size=20).digest()
            yield digest.hex()
