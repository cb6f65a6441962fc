"""`Scope`: everything that one run of a program has started, to be cancelled together."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any, Protocol
from weakref import WeakSet

from sgl_mlx.errors import ProgramCancelled
from sgl_mlx.waits import result_of


class Member(Protocol):
    """A member of a scope: a stream, a batch, a request, or the scope of a called program."""

    def cancel(self, error: BaseException) -> None:
        """Stop unfinished work with this error; finished results stay as they are."""
        ...


class Scope:
    """The streams and requests of one run, and the scopes of the programs that it calls.

    Args:
        parent: the scope of the calling program; cancelling it cancels this scope.

    Attributes:
        error: the reason of the cancellation; None if the scope was not cancelled.
    """

    def __init__(self, parent: Scope | None = None) -> None:
        self.error: BaseException | None = None
        self.parent = parent
        self._members: WeakSet[Member] = WeakSet()
        # Reentrant: the finalizer of a dropped state may run inside any allocation.
        self._lock = RLock()
        if parent is not None:
            parent.add(self)

    def add(self, member: Member) -> None:
        """Add a member to cancel with this scope, or at once if the scope is already cancelled."""
        with self._lock:
            self._members.add(member)
            error = self.error
        if error is not None:
            member.cancel(error)

    def cancel(self, error: BaseException) -> None:
        """Cancel all members with this error; only the first call has an effect."""
        with self._lock:
            if self.error is not None:
                return
            self.error = error
            members = list(self._members)
        for member in members:
            member.cancel(error)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this scope the result of `running_scope` inside the `with` block."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)


# A context variable, so that code of a body finds the scope of its run in any thread.
_running: ContextVar[Scope | None] = ContextVar("sgl_mlx_scope", default=None)


def running_scope() -> Scope | None:
    """Return the scope of the program that calls this; None outside of programs."""
    return _running.get()


def check_cancelled() -> None:
    """Raise an error if the program that calls this was cancelled; otherwise do nothing.

    Raises:
        ProgramCancelled: the calling program was cancelled.
    """
    scope = _running.get()
    if scope is not None and scope.error is not None:
        raise ProgramCancelled(f"the program was ended: {scope.error}") from scope.error


class _Question:
    """A request to the backend outside all streams; its scope cancels it with the program."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def cancel(self, error: BaseException) -> None:
        self._future.cancel()


def answer_of(future: Future[Any]) -> Any:
    """Wait for a backend's answer and return it.

    Cancelling the calling program cancels the request.

    Raises:
        ProgramCancelled: the calling program was cancelled.
        Exception: the error of the backend.
    """
    scope, question = _running.get(), _Question(future)
    if scope is not None:
        scope.add(question)
    try:
        return result_of(future)
    except CancelledError:
        check_cancelled()
        raise
