"""`Readable`: the part of a stream from which threads read its text and variables."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import NoneType
from typing import Any, cast

from sgl_mlx import bounds
from sgl_mlx.core import MetaInfo, PartialCompletion, StreamEvent
from sgl_mlx.errors import UnknownVariableError
from sgl_mlx.lang.binding import Binding, Name, Step
from sgl_mlx.lang.scope import check_cancelled
from sgl_mlx.lang.transcript import Transcript
from sgl_mlx.waits import error_of, result_of, wait_until


class Readable:
    """Text and variables that one thread writes while other threads read them.

    Args:
        transcript: the text written so far.
        streaming: readers see text while it is generated, not only at the end.

    Attributes:
        bindings: the latest binding of each variable.
        error: the error that stopped the stream; None if nothing has stopped it.
        open: True while a program's function may still submit steps: until `close`.
    """

    def __init__(self, transcript: Transcript, streaming: bool) -> None:
        self.transcript = transcript
        self.streaming = streaming
        self.bindings: dict[Name, Binding] = {}
        self.error: BaseException | None = None
        self.open = False
        self._queue: deque[Step] = deque()
        self._current: Step | None = None
        self._partial = PartialCompletion()
        # Reentrant: the finalizer of a dropped state may run inside any allocation.
        self._changed = threading.Condition(threading.RLock())
        self._listeners: list[Callable[[], None]] = []

    # -- the end ------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        return not self._queue and self._current is None

    def close(self) -> None:
        """Declare that the program's function has ended and submits no more steps."""
        self.open = False
        self._notify()

    @property
    def ended(self) -> bool:
        """True if the program's function has ended, and all steps are done or have failed."""
        with self._changed:
            return not self.open and (self._idle or self.error is not None)

    def sync(self, whole: bool = False) -> None:
        """Wait until all steps are done; raise the error that stopped the stream.

        Args:
            whole: also wait until the program's function has ended.
        """
        if whole:
            self.wait_closed()
        self.wait()
        self._raise_error()

    def wait(self) -> None:
        """Wait until all steps are done or the stream has failed; raise nothing."""
        with self._changed:
            wait_until(self._changed, lambda: self.error is not None or self._idle)

    def wait_closed(self) -> None:
        """Wait until the program's function has ended."""
        with self._changed:
            wait_until(self._changed, lambda: not self.open)

    def _raise_error(self) -> None:
        if self.error is not None:
            check_cancelled()
            raise self.error

    # -- variables ----------------------------------------------------------------------------

    def find(self, name: Name, whole: bool = False) -> Binding | None:
        """Return the latest binding of a variable; None if no submitted step sets the variable.

        Args:
            whole: wait until a step with this name is submitted or the program's function ends.

        Raises:
            Exception: with `whole`, the error that stopped the stream before such a step was
                submitted.
        """
        if not isinstance(cast(object, name), (str, NoneType)):
            return None
        if whole:
            with self._changed:
                wait_until(self._changed, lambda: name in self.bindings or not self.open)
            if name not in self.bindings:
                self._raise_error()
        return self.bindings.get(name)

    def binding(self, name: Name, whole: bool = False) -> Binding:
        """Return the latest binding of a variable; `whole` as in `find`.

        Raises:
            UnknownVariableError: no submitted step sets the variable.
        """
        found = self.find(name, whole)
        if found is None:
            known = ", ".join(map(repr, list(self.bindings))) or "none"
            raise UnknownVariableError(
                f"no variable {bounds.shown(name)} in this state; submitted so far: {known}"
            )
        return found

    def value(self, name: Name, whole: bool = False) -> Any:
        """Wait for the value of a variable and return it; `whole` as in `find`.

        Raises:
            UnknownVariableError: no submitted step sets the variable.
            Exception: the error that stopped the stream before the value was known.
        """
        binding = self.binding(name, whole)
        if error_of(binding.value) is not None:
            check_cancelled()
        return result_of(binding.value)

    def assign(self, name: Name, value: Any, meta: Any = None) -> None:
        """Set a variable to a value at once, with its meta information."""
        self.bindings[name] = Binding().settle(value, meta)
        self._notify()

    # -- reading while it is written ------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Transcript]:
        """Yield the transcript, locked for a change; then discard the text that `show` collected.

        The complete answer, which is now in the transcript, takes the place of that text.
        """
        with self._changed:
            yield self.transcript
            self._partial = PartialCompletion()

    def show(self, event: StreamEvent) -> None:
        """Let readers see an event of the current step; events of other samples are ignored.

        Only the events of sample 0 are shown.
        """
        if event.sample == 0:
            with self._changed:
                self._partial.add(event)
            self._notify()

    def meta_so_far(self, name: Name) -> MetaInfo:
        """Return the meta information of a variable being generated; {} for any other variable."""
        with self._changed:
            return self._partial.meta_info() if self._is_current(name) else {}

    def read(self, name: str | None, position: int, whole: bool = False) -> tuple[str, bool]:
        """Return `(text from position on, True if no more text will follow)`; never waits.

        Without streaming, the text is empty until the end.

        Args:
            name: the variable to read; None reads the whole text.
            position: the number of characters already read.
            whole: True: text may follow until the program's function has ended. False: until all
                steps submitted so far are done.

        Raises:
            Exception: the error that stopped the stream.
        """
        with self._changed:
            self._raise_error()
            ended = self._idle and not (whole and self.open)
            text = self.transcript.text + self._partial.text
            if name is not None:
                text, ended = self._read_variable(name, ended)
            return (text[position:], ended) if self.streaming or ended else ("", False)

    def _read_variable(self, name: str, ended: bool) -> tuple[str, bool]:
        binding = self.bindings.get(name)
        if binding is None:
            return "", ended
        if binding.value.done():
            value = result_of(binding.value)
            return str(value[0] if isinstance(value, list) else value), True
        return (self._partial.text if self._is_current(name) else ""), False

    def _is_current(self, name: Name) -> bool:
        return self._current is not None and self.bindings.get(name) in self._current.bindings

    def read_wait(self, name: str | None, position: int, whole: bool = False) -> tuple[str, bool]:
        """Read as `read` does, but first wait until there is new text or the end."""
        found = ("", False)

        def ready() -> bool:
            nonlocal found
            found = self.read(name, position, whole)
            return any(found)

        with self._changed:
            wait_until(self._changed, ready)
        return found

    @contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` after every change of the stream during the `with` block, from any thread."""
        with self._changed:
            self._listeners.append(wake)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(wake)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = list(self._listeners)
        for wake in listeners:
            wake()


@contextmanager
def wakeups(stream: Readable) -> Iterator[asyncio.Event]:
    """Yield an asyncio event that is set after every change of the stream."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop was closed; nobody waits
            loop.call_soon_threadsafe(changed.set)

    with stream.listening(wake):
        yield changed
