"""Connections from rank 0 to every other rank, made once at the start."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.ranks.channel import Channel
from sgl_mlx.runtime.ranks.identity import check, identity
from sgl_mlx.runtime.ranks.launch import ADDRESS, Launch

START_SECONDS = 60.0
"""Longest wait at the start for another rank's process."""
_HELLO_SECONDS = 5.0
"""Longest wait for the first message of something that connects."""

Connected = tuple[Channel, dict[str, Any]]
"""A connection, and the identity of the rank at its other end."""


def accept_all(launch: Launch) -> list[Connected]:
    """Wait, on rank 0, until every other rank has connected; return the connections by rank.

    Raises:
        BackendError: a rank does not come within `START_SECONDS`, or does not fit this one. The
            ranks that have connected are told why.
    """
    try:
        listener = socket.create_server((launch.host, launch.port))
    except OSError as error:
        raise BackendError(
            f"rank 0 cannot listen on {launch.host}:{launch.port} for the other ranks: {error}; "
            f"set {ADDRESS}=host:port on all ranks"
        ) from error
    mine, found = identity(0, launch.size), dict[int, Connected]()
    try:
        with listener:
            _accept(listener, launch, found, mine)
    except BackendError as error:
        for channel, _ in found.values():
            quietly(channel.tell, **{"is": "refused", "text": str(error)})
            channel.close()
        raise
    for channel, _ in found.values():
        channel.limit(None)
        quietly(channel.tell, **{"is": "welcome", "identity": mine})
    return [connected for _, connected in sorted(found.items())]


def connect(launch: Launch) -> Connected | None:
    """Connect another rank to rank 0, which may start later.

    Returns:
        The connection to rank 0; None if rank 0 refuses this rank. Rank 0 itself reports why.

    Raises:
        BackendError: rank 0 does not answer within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            channel = Channel(socket.create_connection((launch.host, launch.port), timeout=5.0))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise BackendError(
                    f"rank 0 does not answer at {launch.host}:{launch.port}: {error}"
                ) from error
            time.sleep(0.1)
    try:
        channel.limit(START_SECONDS + _HELLO_SECONDS)  # rank 0 waits for the last rank
        channel.tell(**{"is": "hello", "identity": identity(launch.rank, launch.size)})
        answer = channel.receive().note
    except OSError as error:
        raise BackendError(f"rank 0 ended before all ranks had come: {error}") from error
    if answer.get("is") != "welcome":
        return None
    channel.limit(None)
    return channel, answer["identity"]


def quietly(function: Callable[..., object], **arguments: Any) -> None:
    """Call a function that sends something; ignore the error if the other end is gone."""
    with suppress(OSError):
        function(**arguments)


def _accept(
    listener: socket.socket, launch: Launch, found: dict[int, Connected], mine: dict[str, Any]
) -> None:
    """Fill `found` with a connection to every other rank."""
    deadline = time.monotonic() + START_SECONDS
    while len(found) < launch.size - 1:
        listener.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            missing = sorted(set(range(1, launch.size)) - set(found))
            raise BackendError(
                f"rank {', '.join(map(str, missing))} of {launch.size} did not connect to "
                f"{launch.host}:{launch.port} within {START_SECONDS:.0f} s"
            ) from None
        connected = _greet(Channel(connection))
        if connected is not None:
            found[int(connected[1]["rank"])] = connected
            check(mine, connected[1])


def _greet(channel: Channel) -> Connected | None:
    """Receive the identity of a rank, and return it with the channel.

    Returns None, with the channel closed, if something else has connected.
    """
    channel.limit(_HELLO_SECONDS)
    try:
        note = channel.receive().note
        if note.get("is") == "hello" and isinstance(note["identity"]["rank"], int):
            return channel, note["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # for instance a browser
    channel.close()
    return None
