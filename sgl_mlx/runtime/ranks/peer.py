"""Another rank at the other end of a channel: its messages, and whether it is alive."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.ranks.channel import Channel, Message

TIMEOUT = "SGL_MLX_RANKS_TIMEOUT"
"""Variable with the seconds of silence after which a rank counts as lost."""
_SILENCE = 6.0
_BEATS = 6
"""Number of heartbeats that are sent within the seconds of `silence`."""


def silence() -> float:
    """Return the seconds of silence after which a rank counts as lost."""
    given = os.environ.get(TIMEOUT, "")
    try:
        return max(float(given), 0.1) if given else _SILENCE
    except ValueError:
        raise BackendError(f"{TIMEOUT}={given} is not a number of seconds") from None


Lost = Callable[["Peer", str, bool], None]
"""Called with a rank that is lost, why, and whether it is silent though its connection holds."""


class Peer:
    """A rank, whose messages a thread of its own reads.

    Args:
        identity: as `identity.identity` describes the rank.
        lost: called when the rank is gone, from any thread.

    Attributes:
        on_read: functions called on the reading thread with the rank and its note about a finished
            reading of its disk cache, by the number of the engine.
    """

    def __init__(self, channel: Channel, identity: dict[str, Any], lost: Lost) -> None:
        self.channel, self.identity = channel, identity
        self.rank: int = identity["rank"]
        self.heard = time.monotonic()
        self.leaving = False
        self.on_read: dict[int, Callable[[int, dict[str, Any]], None]] = {}
        self._lost = lost
        self._inbox: queue.SimpleQueue[Message | BackendError] = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=self._read, name=f"sgl-mlx rank {self.rank}", daemon=True
        )
        self.thread.start()

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.identity['host']}"

    def next(self) -> Message:
        """Wait for the next message that is not a heartbeat.

        Raises:
            BackendError: the rank was lost, or reports an error.
        """
        found = self._inbox.get()
        if isinstance(found, BackendError):
            self._inbox.put(found)
            raise found
        return found

    def fail(self, error: BackendError) -> None:
        """Make `next` raise this error from now on."""
        self._inbox.put(error)

    def _read(self) -> None:
        try:
            while True:
                message = self.channel.receive()
                self.heard = time.monotonic()
                if message.kind == "note":
                    note = message.note
                    self.leaving |= note.get("is") == "leave"
                    if note.get("is") == "read" and "count" in note:
                        if (on_read := self.on_read.get(note["engine"])) is not None:
                            on_read(self.rank, note)
                        continue
                    if note.get("is") == "error":
                        self._lost(self, str(note["text"]), False)
                        return
                if message.kind != "beat":
                    self._inbox.put(message)
        except (OSError, ValueError) as error:
            if not self.leaving:
                self._lost(self, f"it is gone: {error}", False)


class Watch:
    """A thread that sends heartbeats to peers, and finds those that are silent."""

    def __init__(self, peers: Sequence[Peer], lost: Lost) -> None:
        self._peers, self._lost = peers, lost
        self._silence = silence()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="sgl-mlx heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Send no more heartbeats and report nothing more."""
        self._ended.set()

    def _run(self) -> None:
        pause = self._silence / _BEATS
        last = time.monotonic()
        while not self._ended.wait(pause):
            now = time.monotonic()
            if now - last > 3 * pause:  # this process itself stood still
                for peer in self._peers:
                    peer.heard = now
            last = now
            for peer in self._peers:
                if not peer.leaving:
                    self._check(peer, now)

    def _check(self, peer: Peer, now: float) -> None:
        if now - peer.heard > self._silence:
            self._lost(peer, f"nothing was heard from it for {self._silence:g} s", True)
            return
        with suppress(OSError):  # the reading thread reports it
            peer.channel.beat()
