"""Threads that call callers' callbacks, so that one that blocks holds up its own request alone."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

log = logging.getLogger(__name__)

Order = Callable[[], object]
PATIENCE = 1.0
"""Seconds after which a call counts as blocked."""


class Deliveries:
    """A queue of functions, which are called on a thread of its own in the order they were put in.

    Each function has an owner, its request. When a call blocks, another thread takes over for all
    other owners; the functions of the owner whose call is blocked wait, in their order, until that
    call has returned.

    Args:
        patience: seconds after which a call counts as blocked.

    Attributes:
        threads: the threads that have not ended.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._queue: deque[tuple[Hashable, Order]] = deque()
        self._held: dict[Hashable, list[Order]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._started: float | None = None
        self._leader = threading.Thread(target=lambda: None)
        self.threads: frozenset[threading.Thread] = frozenset()

    def start(self) -> None:
        with self._changed:
            self._lead()

    def put(self, order: Order, owner: Hashable) -> None:
        """Queue a function; an error that it raises is logged."""
        with self._changed:
            self._queue.append((owner, order))
            self._changed.notify()

    def close(self) -> None:
        """End the threads once all that is queued has been called."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def relieve(self) -> None:
        """If a call blocks, start another thread in its place. The watchdog calls this."""
        with self._changed:
            if self._started is None or not self._queue:
                return
            if time.monotonic() - self._started >= self._patience:
                self._lead()

    def _lead(self) -> None:
        """Start a new thread, which calls the functions from now on."""
        self._started = None
        self._leader = threading.Thread(target=self._work, name="sgl-mlx delivery", daemon=True)
        self.threads |= {self._leader}
        self._leader.start()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            owner, order = found
            try:
                order()
            except BaseException:  # such as SystemExit, from a callback of a future
                log.exception("a callback ended with an error")
            del order, found  # what they hold is freed while this waits
            self._returned(owner)
        with self._changed:
            self.threads -= {threading.current_thread()}

    def _next(self) -> tuple[Hashable, Order] | None:
        """Wait for the next function to call, with its owner; None tells this thread to end."""
        with self._changed:
            while self._leader is threading.current_thread():
                while self._queue:
                    owner, order = self._queue.popleft()
                    if owner not in self._held:
                        self._held[owner] = []
                        self._started = time.monotonic()
                        return owner, order
                    self._held[owner].append(order)
                if self._closed and not self._held:
                    break
                self._changed.wait()
        return None

    def _returned(self, owner: Hashable) -> None:
        with self._changed:
            held = self._held.pop(owner)
            self._queue.extendleft((owner, order) for order in reversed(held))
            if self._leader is threading.current_thread():
                self._started = None
            else:
                self._changed.notify()  # the leader goes on with what this thread held up
