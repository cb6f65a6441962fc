"""Everything that one run of a program has started, so that it can be ended together."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any, Protocol
from weakref import WeakSet

from sgl_mlx.errors import ProgramCancelled
from sgl_mlx.lang.binding import result_of


class Member(Protocol):
    """A stream, a batch, a question, or the scope of a program called by a body."""

    def cancel(self, error: BaseException) -> None:
        """End what is unfinished with this error; what is finished stays as it is."""
        ...


class Scope:
    """The streams of one run, and the scopes of the programs that its body calls.

    Args:
        parent: ends this scope when it ends itself.

    Attributes:
        error: why the run was ended early; None while it was not.
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
        """Let `member` end with this scope; at once, if the scope has ended already."""
        with self._lock:
            self._members.add(member)
            error = self.error
        if error is not None:
            member.cancel(error)

    def cancel(self, error: BaseException) -> None:
        """End all members that are unfinished; only the first call has an effect."""
        with self._lock:
            if self.error is not None:
                return
            self.error = error
            members = list(self._members)
        for member in members:
            member.cancel(error)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the `with` block as the body of this scope."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)


# A context variable, as the body's own words must find their run, in whichever thread it is.
_running: ContextVar[Scope | None] = ContextVar("sgl_mlx_scope", default=None)


def running_scope() -> Scope | None:
    """Return the scope of the body that calls; None outside of bodies."""
    return _running.get()


def check_cancelled() -> None:
    """Do nothing, except in a body that was cancelled.

    Raises:
        ProgramCancelled: the run of the calling body has been ended.
    """
    scope = _running.get()
    if scope is not None and scope.error is not None:
        raise ProgramCancelled(f"the program was ended: {scope.error}") from scope.error


class _Question:
    """A question to the backend that no stream waits for."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def cancel(self, error: BaseException) -> None:
        self._future.cancel()


def answer_of(future: Future[Any]) -> Any:
    """Wait for a backend's answer, or raise its error; ends with the body that asks.

    Raises:
        ProgramCancelled: the run of the calling body has been ended.
    """
    scope, question = _running.get(), _Question(future)
    if scope is not None:
        scope.add(question)
    try:
        return result_of(future)
    except CancelledError:
        check_cancelled()
        raise
