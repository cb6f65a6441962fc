"""Disk caches of several ranks: each rank keeps its own part of every block, under the same key.

Rank 0 alone looks blocks up. A reading starts on all ranks, and is done when it is done on all of
them. It gives the blocks that every rank has. Spills and loads are transfers of plans, which all
ranks carry out.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Container, Sequence
from typing import Any

from sgl_mlx.runtime.disk.store import DiskReading, DiskStore
from sgl_mlx.runtime.ranks.channel import Channel, Message
from sgl_mlx.runtime.ranks.connect import quietly
from sgl_mlx.runtime.ranks.crew import Crew


def folder_of(rank: int, size: int) -> str:
    """Return the name of a rank's folder within the folder of the disk cache."""
    return f"rank-{rank}-of-{size}"


class SharedReading:
    """Blocks that all ranks read; implements `tier.Reading` on rank 0.

    Attributes:
        counts: how many blocks each other rank has read, by rank; complete when every other rank
            has reported.
    """

    def __init__(self, own: DiskReading, others: int) -> None:
        self.id, self.keys = own.id, own.keys
        self.counts: dict[int, int] = {}
        self._own, self._others = own, others

    @property
    def done(self) -> bool:
        return self._own.done and len(self.counts) == self._others

    @property
    def count(self) -> int:
        return min(self._own.count, *self.counts.values())


class SendingStore:
    """The `tier.BlockStore` of rank 0, which reads each block on all ranks.

    Args:
        own: the store with this rank's part of the blocks.
        engine: number of the engine whose blocks these are.
        on_read: called from any thread when other ranks have finished a reading.
    """

    def __init__(
        self, own: DiskStore, crew: Crew, engine: int, on_read: Callable[[], None]
    ) -> None:
        self._own, self._crew, self._on_read = own, crew, on_read
        self._engine = engine
        self._under_way: dict[int, SharedReading] = {}
        for peer in crew.peers:
            peer.on_read[engine] = self._heard

    def has(self, key: str) -> bool:
        """Return True if this rank has its part of the block; other ranks likely have theirs."""
        return self._own.has(key)

    def keys(self) -> Container[str]:
        """Return the keys of all blocks of which this rank has its part."""
        return self._own.keys()

    def read(self, keys: Sequence[str]) -> SharedReading:
        """Start to read blocks on all ranks and return at once."""
        reading = SharedReading(self._own.read(keys), len(self._crew.peers))
        self._under_way[reading.id] = reading
        self._crew.tell("read", engine=self._engine, reading=reading.id, keys=list(keys))
        return reading

    def drop(self, reading: int) -> None:
        """Forget a reading on all ranks."""
        self._own.drop(reading)
        self._crew.tell("drop", engine=self._engine, reading=reading)

    def _heard(self, rank: int, note: dict[str, Any]) -> None:
        """Take the result of another rank's reading; called on the thread that reads its messages.

        Rank 0 discards its part of blocks that another rank lacks. If it kept its part, such blocks
        would never be written again, since rank 0 orders the writing of those it lacks itself.
        """
        reading = self._under_way[note["reading"]]
        for key in note["lacks"]:
            self._own.folder.discard(key)
        reading.counts[rank] = note["count"]
        if len(reading.counts) == len(self._crew.peers):
            del self._under_way[reading.id]
            self._on_read()


class ReceivingStore:
    """The disk cache of a rank other than 0; it reads the blocks that rank 0 names.

    Args:
        engine: number of the engine whose blocks these are.

    Attributes:
        store: the store with this rank's part of the blocks; None without a disk cache.
    """

    def __init__(self, channel: Channel, engine: int) -> None:
        self.store: DiskStore | None = None
        self._channel, self._engine = channel, engine
        self._under_way: list[DiskReading] = []
        self._lock = threading.Lock()

    def obey(self, message: Message) -> bool:
        """Start or forget a reading, as a message of rank 0 orders; False for any other message.

        Raises:
            ValueError: the reading has another number on this rank than on rank 0.
        """
        note = message.note
        if self.store is None or note["is"] not in ("read", "drop"):
            return False
        if note["is"] == "drop":
            self.store.drop(note["reading"])
            return True
        reading = self.store.read(note["keys"])
        if reading.id != note["reading"]:
            raise ValueError(f"reading {note['reading']} of rank 0 is {reading.id} here")
        with self._lock:
            self._under_way.append(reading)
        self.report()  # it may have been done before it was in the list
        return True

    def report(self) -> None:
        """Tell rank 0 about all readings that are done; call it from any thread."""
        with self._lock:
            done = [reading for reading in self._under_way if reading.done]
            self._under_way = [reading for reading in self._under_way if reading not in done]
        for reading in done:
            told = {"is": "read", "engine": self._engine, "reading": reading.id}
            quietly(self._channel.tell, **told, count=reading.count, lacks=self._lacks(reading))

    def _lacks(self, reading: DiskReading) -> list[str]:
        """Return the keys of a reading's blocks that this rank lacks, or could not read."""
        left = reading.keys[reading.count :]
        return [key for i, key in enumerate(left) if not (i and self.store and self.store.has(key))]

    def close(self) -> None:
        """Write what is queued and stop the store's threads."""
        if self.store is not None:
            self.store.close()


def identity_of_all(identities: Sequence[str]) -> str:
    """Hash the identities (`disk.open.identity`) of all ranks, in their order."""
    return hashlib.sha256(" ".join(identities).encode()).hexdigest()
