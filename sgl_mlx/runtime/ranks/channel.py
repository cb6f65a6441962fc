"""Messages between rank 0 and another rank, over a TCP connection beside MLX's own.

Plans are sent over this connection, not by a collective operation of MLX. A collective operation
blocks inside C++ until every rank takes part, so there could be no time limits, no reports of
errors and no search for missing ranks. A message of a few hundred bytes takes about 50
microseconds, and MLX computes meanwhile.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import suppress
from typing import Any, Literal, NamedTuple

Kind = Literal["beat", "note", "plan"]
_KINDS: tuple[Kind, ...] = ("beat", "note", "plan")
_HEADER = struct.Struct("!BI")
_MOST = 1 << 30
"""Most bytes of one message."""


class Message(NamedTuple):
    """A message as it was received.

    Attributes:
        kind: "beat" (a heartbeat, empty), "note" (an object in JSON) or "plan" (see `broadcast`).
    """

    kind: Kind
    text: str

    @property
    def note(self) -> dict[str, Any]:
        """The object that a note consists of.

        Raises:
            ConnectionError: the message is not a note.
        """
        found = json.loads(self.text) if self.kind == "note" else None
        if not isinstance(found, dict):
            raise ConnectionError(f"expected a note, got {self.kind}: {self.text[:80]!r}")
        return found


class Channel:
    """One end of a connection. Any thread may send; only one thread may receive."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: Kind, text: str = "") -> None:
        """Send a message; raises OSError if the connection is closed."""
        body = text.encode("utf-8", "surrogatepass")
        with self._sending:
            self._connection.sendall(_HEADER.pack(_KINDS.index(kind), len(body)) + body)

    def tell(self, **note: Any) -> None:
        """Send a note; raises OSError if the connection is closed."""
        self.send("note", json.dumps(note))

    def beat(self) -> None:
        """Send a heartbeat, unless another thread is sending a message, which serves as one."""
        if self._sending.acquire(blocking=False):
            try:
                self._connection.sendall(_HEADER.pack(0, 0))
            finally:
                self._sending.release()

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            ConnectionError: the other end closed the connection, or sent something else.
            OSError: the connection failed, or a time limit set by `limit` passed.
        """
        kind, length = _HEADER.unpack(self._exactly(_HEADER.size))
        if kind >= len(_KINDS) or length > _MOST:
            raise ConnectionError("the other end is not a rank of sgl-mlx")
        return Message(_KINDS[kind], self._exactly(length).decode("utf-8", "surrogatepass"))

    def limit(self, seconds: float | None) -> None:
        """Limit how long each later `send` or `receive` may wait; None for no limit."""
        self._connection.settimeout(seconds)

    def close(self) -> None:
        """Close the connection at both ends; safe to call twice and from any thread."""
        with suppress(OSError):  # closed already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._connection.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise ConnectionError("the connection was closed")
            parts += part
        return bytes(parts)
