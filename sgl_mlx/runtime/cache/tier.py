"""The second tier of the cache (on disk): which blocks of a prompt it keeps, under which keys.

A prefix is kept in blocks of `size` tokens. A block's key is a digest of everything its KV depends
on: the model, the namespace and all tokens up to the block's end. So equal keys mean equal KV, and
engines that share a store share its blocks. The end of a prompt that fills no block is not kept.

The cache records transfers between pool and store when it allocates slots. A plan carries them, and
the runner carries them out, in order, before it computes the plan. Until then nothing writes to the
slots of a `Spill`, and nothing reads the slots of a `Load`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sgl_mlx.runtime.cache.radix import PLAIN, Node

BLOCK = 64
"""Tokens in a block."""
WORTHWHILE = 128
"""Fewest tokens worth reading: on a laptop, about 10 ms to read them, about 100 ms to compute."""


@dataclass(frozen=True)
class Spill:
    """A transfer of blocks from the pool to the store, before their slots are reused.

    Args:
        keys: keys of the blocks.
        slots: slots of the blocks' tokens, one block after the other.
        windows: True if `slots` are window slots, for layers with a sliding window; False for all
            other layers.
    """

    keys: tuple[str, ...]
    slots: tuple[int, ...]
    windows: bool = False


@dataclass(frozen=True)
class Load:
    """A transfer of KV from a finished reading into the pool.

    Args:
        slots: slots to write, for consecutive tokens; 0 for a token that is not to be written.
        reading: id of the `Reading` that has the KV.
        skip: number of tokens to skip at the reading's beginning.
        windows: as for a `Spill`.
    """

    slots: tuple[int, ...]
    reading: int
    skip: int = 0
    windows: bool = False


@dataclass(frozen=True)
class Grow:
    """An enlargement of the pool; the KV in it keeps its slots.

    Args:
        slots: number of slots afterwards; a pool with as many or more stays as it is.
    """

    slots: int


@dataclass(frozen=True)
class GrowStates:
    """An enlargement of the pool of recurrent states; the states in it keep their slots.

    Args:
        slots: number of slots afterwards; a pool with as many or more stays as it is.
    """

    slots: int


@dataclass(frozen=True)
class GrowWindows:
    """An enlargement of the pool for layers with a sliding window; KV in it keeps its slots.

    Args:
        slots: number of slots afterwards; a pool with as many or more stays as it is.
    """

    slots: int


@dataclass(frozen=True)
class SpillState:
    """A transfer of a snapshot from the pool to the store, before its slot is reused.

    Args:
        key: key of the snapshot.
        state: slot of the state.
        slots: KV slots of the tokens after the prefix's last whole block.
    """

    key: str
    state: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class LoadState:
    """A transfer of a snapshot from a finished reading into the pool.

    Args:
        state: state slot to write.
        slots: KV slots to write, for the last tokens of the prefix.
        reading: id of the `Reading` that has the snapshot.
        skip: number of tokens with KV in the reading that are in the pool already.
    """

    state: int
    slots: tuple[int, ...]
    reading: int
    skip: int = 0


Transfer = Spill | Load | Grow | GrowStates | GrowWindows | SpillState | LoadState
"""An order for the runner, carried out before it computes a plan."""


class Reading(Protocol):
    """Blocks that another thread reads; the store keeps their KV until it is loaded or dropped.

    Attributes:
        id: number that names the reading in a `Load` or `LoadState`.
        done: True when reading has finished; only then is `count` valid.
        count: how many of the requested blocks, from the first on, were read.
    """

    id: int

    @property
    def done(self) -> bool: ...

    @property
    def count(self) -> int: ...


class Found(NamedTuple):
    """A prefix that can be restored and continued.

    Attributes:
        length: number of its tokens.
        start: number of leading tokens whose KV is not read, because the pool has it.
        blocks: keys of the blocks of KV to read.
        end: keys of what else a sequence needs to go on after the prefix: a snapshot of recurrent
            state, or the blocks of layers with a sliding window.
    """

    length: int
    start: int
    blocks: list[str]
    end: list[str]


class BlockStore(Protocol):
    """The interface of a store that keeps blocks of KV by key, such as a folder on disk."""

    def has(self, key: str) -> bool:
        """Return True if the store probably has this block; does not wait for the disk."""
        ...

    def keys(self) -> Container[str]:
        """Return the keys of all blocks in the store, for a caller that looks up many of them."""
        ...

    def read(self, keys: Sequence[str]) -> Reading:
        """Start to read blocks on another thread; return at once."""
        ...

    def drop(self, reading: int) -> None:
        """Discard a reading whose KV will not be loaded."""
        ...


@dataclass
class Lookups:
    """Counts of prompts looked up: with enough stored blocks to be worth reading (hits), or not."""

    hits: int = 0
    misses: int = 0


class Tier:
    """The second tier: computes the keys of blocks and finds them in a store.

    Args:
        identity: name of the model, KV type and shapes; blocks of another identity are not found.
        size: tokens in a block.
        worthwhile: fewest uncached tokens for which blocks are read.
        layers: False for a model without attention, which has no KV to keep.
    """

    def __init__(
        self,
        store: BlockStore,
        identity: str,
        size: int = BLOCK,
        worthwhile: int = WORTHWHILE,
        layers: bool = True,
    ) -> None:
        self.store = store
        self.layers = layers
        self.size = size
        self.lookups = Lookups()
        self._identity = f"{identity}/{size}/".encode()
        self.worthwhile = worthwhile

    def spill(self, node: Node, namespace: Hashable) -> Spill | None:
        """Make the transfer that keeps an evicted node's blocks; None if there is nothing to keep.

        The transfer has the blocks whose last token is in the node and which the store lacks. The
        first tokens of such a block may be in the node's ancestors; their slots are copied too.
        """
        size = self.size
        first, last = (node.depth - len(node.tokens)) // size, node.depth // size
        if first == last or not self.layers:
            return None
        path = list(node.path())[::-1]
        tokens = tuple(t for n in path for t in n.tokens)
        slots = [slot for n in path for slot in n.slots]
        named = enumerate(self.keys(tokens, namespace))
        new = [(i, key) for i, key in named if i >= first and not self.store.has(key)]
        if not new:
            return None
        wanted = (slot for i, _ in new for slot in slots[i * size : (i + 1) * size])
        return Spill(tuple(key for _, key in new), tuple(wanted))

    def find(self, tokens: tuple[int, ...], namespace: Hashable, cached: int) -> list[str]:
        """Return the keys of consecutive stored blocks from token `cached` on; [] if too few."""
        if len(tokens) - cached < self.worthwhile:
            return []
        found: list[str] = []
        first = cached // self.size
        for i, key in enumerate(self.keys(tokens, namespace)):
            if i >= first:
                if not self.store.has(key):
                    break
                found.append(key)
        if (first + len(found)) * self.size - cached < self.worthwhile:
            self.lookups.misses += 1
            return []
        self.lookups.hits += 1
        return found

    def name_of(self, namespace: Hashable) -> bytes | None:
        """Return the bytes with which the hash of a key begins.

        Returns None if the namespace is neither `PLAIN` nor bytes.
        """
        name = b"" if namespace == PLAIN else namespace
        return self._identity + name if isinstance(name, bytes) else None

    def keys(self, tokens: tuple[int, ...], namespace: Hashable) -> Iterator[str]:
        """Yield the key of each whole block; none unless the namespace is `PLAIN` or bytes."""
        digest = self.name_of(namespace)
        if digest is None:
            return
        size = self.size
        for start in range(0, len(tokens) - size + 1, size):
            block = repr(tokens[start : start + size]).encode()
            digest = hashlib.blake2b(digest + block, digest_size=20).digest()
            yield digest.hex()
