"""All other ranks as rank 0 sees them: messages to all of them, and the end when one is lost."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.ranks.channel import Kind
from sgl_mlx.runtime.ranks.connect import Connected, quietly
from sgl_mlx.runtime.ranks.identity import kill_if_stopped_here
from sgl_mlx.runtime.ranks.peer import Peer, Watch

log = logging.getLogger(__name__)

_GRACE = 2.0
"""Seconds between telling all requests that a rank is lost and ending the process."""
_VERDICT = 1.0
"""Seconds to wait after a failed step: news of a lost rank would explain the failure better."""


class Crew:
    """Connections of rank 0 to all other ranks.

    When a rank is lost, all requests fail with the same error, and soon afterwards this process
    ends. A step in which a rank is missing never returns, and only the end of the process can stop
    it.

    Attributes:
        fail_engines: functions that end all requests of an open engine with a reason, by the
            engine's number.
    """

    def __init__(self, connected: Sequence[Connected]) -> None:
        self.fail_engines: dict[int, Callable[[str], None]] = {}
        self._ending = threading.Lock()
        self._ended = threading.Event()
        self._reason = ""
        self._peers: list[Peer] = []
        self._peers += [Peer(channel, identity, self._lost) for channel, identity in connected]
        self._watch = Watch(self._peers, self._lost)

    @property
    def peers(self) -> Sequence[Peer]:
        return self._peers

    def check(self) -> None:
        """Raise `BackendError` if a rank was lost."""
        if self._ended.is_set():
            raise BackendError(self._reason)

    def send(self, kind: Kind, text: str) -> None:
        """Send a message to all ranks.

        Raises:
            BackendError: a rank is lost.
        """
        for peer in self._peers:
            self.check()
            try:
                peer.channel.send(kind, text)
            except OSError as error:
                self._lost(peer, f"it is gone: {error}", False)
                self.check()

    def tell(self, what: str, **more: Any) -> None:
        """Send a note to all ranks. Ignore lost ranks, because a loss ends all ranks anyway."""
        for peer in self._peers:
            quietly(peer.channel.tell, **{"is": what, **more})

    def leave(self) -> None:
        """End all other ranks, when this process ends."""
        if self._ended.is_set():
            threading.Event().wait(2 * _GRACE)  # `_exit` ends the process first
        self._watch.stop()
        self.tell("leave")
        for peer in self._peers:
            peer.leaving = True
            peer.channel.close()

    def fail_step(self, error: Exception) -> NoReturn:
        """End all ranks after a step that failed on rank 0; never returns.

        The other ranks may still be within that step. Steps fail most often because a rank is lost;
        then the requests are told of the loss, not of the failed step.
        """
        if not self._ended.wait(_VERDICT):
            self._end(f"a step failed on rank 0: {type(error).__name__}: {error}")
        while True:
            time.sleep(_GRACE)

    def _lost(self, peer: Peer, why: str, silent: bool) -> None:
        self._end(f"{peer}: {why}")
        if silent:
            kill_if_stopped_here(peer.identity)

    def _end(self, reason: str) -> None:
        """Fail all requests with `reason`, then end this process with code 1; works once."""
        with self._ending:
            if self._ended.is_set():
                return
            self._reason = reason
            self._ended.set()
        log.error("the ranks end: %s", reason)
        for peer in self._peers:
            peer.leaving = True
            peer.fail(BackendError(reason))
            peer.channel.close()
        threading.Thread(target=self._exit, name="sgl-mlx end of the ranks", daemon=True).start()

    def _exit(self) -> None:
        for fail in list(self.fail_engines.values()):
            fail(self._reason)
        time.sleep(_GRACE)
        for stream in (sys.stdout, sys.stderr):
            quietly(stream.flush)
        os._exit(1)
