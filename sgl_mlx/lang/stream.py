"""One asynchronous prompt: steps are applied in the order submitted, and submitting never waits.

A stream has no thread. `submit` queues steps and applies those it can. A step that asks the backend
leaves a future; the thread that completes the future goes on with the queue. `_current` is the step
being applied or waited for; only one thread at a time has it. No callback runs while the lock is
held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from sgl_mlx.core import MetaInfo, PartialCompletion, SamplingParams, StreamEvent
from sgl_mlx.errors import RequestAborted, UnknownVariableError
from sgl_mlx.lang import interpreter, ir
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.binding import Binding, Name, Step, result_of
from sgl_mlx.lang.site import call_site, note_site
from sgl_mlx.lang.transcript import Transcript


class Stream:
    """The prompt behind a `ProgramState`.

    Args:
        backend: answers `gen` and `select`.
        transcript: the text written so far.
        defaults: sampling parameters, for those that a `gen` does not give.
        streaming: ask the backend for text while it is generated.
        open_ended: a body still submits from another thread, so an empty queue is not the end
            until `close`.
    """

    def __init__(
        self,
        backend: Backend,
        transcript: Transcript,
        defaults: SamplingParams,
        streaming: bool = False,
        open_ended: bool = False,
    ) -> None:
        self.backend = backend
        self.transcript = transcript
        self.defaults = defaults
        self.streaming = streaming
        self.bindings: dict[Name, Binding] = {}
        self.scopes: dict[str, tuple[Binding, int]] = {}
        self.error: BaseException | None = None
        self._open_ended = open_ended
        self._submitted_role = transcript.role
        self._queue: deque[Step] = deque()
        self._current: Step | None = None
        self._waiting: Future[Any] | None = None
        self._partial = PartialCompletion()
        # Reentrant: the finalizer of a dropped state may run inside any allocation.
        self._changed = threading.Condition(threading.RLock())
        self._listeners: list[Callable[[], None]] = []

    # -- submitting ---------------------------------------------------------------------------

    def submit(self, expr: ir.Expr) -> None:
        """Queue an expression; returns at once.

        Raises:
            ProgramError: nested or unmatched roles. Nothing of the expression is queued then.
            InvalidParamsError: a sampling value out of range.
        """
        site = call_site()
        steps = [
            Step(
                node,
                site,
                interpreter.params_of(node, self.defaults),
                tuple(Binding() for _ in interpreter.names_of(node)),
            )
            for node in ir.leaves(expr)
        ]
        self.enqueue(steps)

    def enqueue(self, steps: Sequence[Step]) -> None:
        """Queue steps that are already made; raises `ProgramError` as `submit` does."""
        role = self._submitted_role
        for step in steps:
            role = interpreter.role_after(step.node, role)
        with self._changed:
            self._submitted_role = role
            for step in steps:
                names = interpreter.names_of(step.node)
                self.bindings.update(zip(names, step.bindings, strict=True))
            self._queue.extend(steps)
        if self.error is not None:
            self._fail_pending(self.error)
        self._advance()

    def sync(self) -> None:
        """Wait until every step is done; raises the error that stopped the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or self._idle)
        self._raise_error()

    def close(self) -> None:
        """Declare that no more steps will be submitted."""
        self._open_ended = False
        self._notify()

    def fork(self, gap: int = 0) -> Stream:
        """Return a stream that continues from this one's text; call it only after `sync`."""
        child = Stream(self.backend, self.transcript.fork(gap), self.defaults, self.streaming)
        child.bindings = dict(self.bindings)
        return child

    def abort(self, error: BaseException | None = None) -> None:
        """Stop, cancel the running request, and give readers the error."""
        if error is not None or not self._idle:
            self._fail(error or RequestAborted("the program was aborted or its state dropped"))

    # -- variables ----------------------------------------------------------------------------

    def binding(self, name: Name) -> Binding:
        """Return the latest binding of this name.

        Raises:
            UnknownVariableError: at once, when the name was never submitted.
        """
        try:
            return self.bindings[name]
        except KeyError:
            known = ", ".join(map(repr, self.bindings)) or "none"
            raise UnknownVariableError(
                f"no variable {name!r} in this state; submitted so far: {known}"
            ) from None

    def value(self, name: Name) -> Any:
        """Wait for a variable; raises as `binding`, or the error that stopped the stream."""
        return result_of(self.binding(name).value)

    # -- applying -----------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        return not self._queue and self._current is None

    def _advance(self) -> None:
        while (step := self._take()) is not None:
            try:
                asked = interpreter.apply(step, self)
            except Exception as error:
                note_site(error, step.site)
                self._fail(error)
                return
            if asked is None:
                self._leave()
            elif asked.future.done():
                self._answer(step, asked, asked.future)
            else:
                self._wait_for(step, asked)

    def _take(self) -> Step | None:
        with self._changed:
            if self.error is not None or self._current is not None or not self._queue:
                return None
            self._current = self._queue.popleft()
            return self._current

    def _leave(self) -> None:
        with self._changed:
            self._current = self._waiting = None
        self._notify()

    def _wait_for(self, step: Step, asked: interpreter.Asked) -> None:
        with self._changed:
            self._waiting = asked.future
            stopped = self.error is not None
        if stopped:
            asked.future.cancel()
        asked.future.add_done_callback(partial(self._resume, step, asked))

    def _resume(self, step: Step, asked: interpreter.Asked, future: Future[Any]) -> None:
        self._answer(step, asked, future)
        self._advance()

    def _answer(self, step: Step, asked: interpreter.Asked, future: Future[Any]) -> None:
        if self.error is not None:
            return
        try:
            if future.cancelled():
                raise RequestAborted("the request was cancelled")
            asked.then(result_of(future))
        except Exception as error:
            note_site(error, step.site)
            self._fail(error)
        else:
            self._leave()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self.error is not None:
                return
            self.error = error
            waiting = self._waiting
        self._fail_pending(error)
        if waiting is not None:
            waiting.cancel()
        self._notify()

    def _fail_pending(self, error: BaseException) -> None:
        with self._changed:
            steps = [*filter(None, [self._current]), *self._queue]
            pending = [binding for step in steps for binding in step.bindings]
            pending += [binding for binding, _ in self.scopes.values()]
            self._queue.clear()
            self._current = None
        for binding in pending:
            binding.fail(error)

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    # -- reading while it is written ------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Transcript]:
        """Lock the transcript for a change; clears the text that `show` gave ahead of it."""
        with self._changed:
            yield self.transcript
            self._partial = PartialCompletion()

    def show(self, event: StreamEvent) -> None:
        """Let readers have what the current step has generated so far, of its first sample."""
        if event.sample == 0:
            with self._changed:
                self._partial.add(event)
            self._notify()

    def meta_so_far(self, name: Name) -> MetaInfo:
        """Return the meta information of a variable that is being generated; else empty."""
        with self._changed:
            return self._partial.meta_info() if self._is_current(name) else {}

    def read(self, name: str | None, position: int) -> tuple[str, bool]:
        """Return text from `position` on, and True if no more will come.

        Without streaming there is no text before the end.

        Args:
            name: the variable to read; None reads the whole text.
            position: the number of characters already read.
        """
        with self._changed:
            self._raise_error()
            ended = self._idle and not self._open_ended
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

    def read_wait(self, name: str | None, position: int) -> tuple[str, bool]:
        """Read as `read` does, waiting until there is new text or the end."""
        found = ("", False)

        def ready() -> bool:
            nonlocal found
            found = self.read(name, position)
            return any(found)

        with self._changed:
            self._changed.wait_for(ready)
        return found

    @contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, from any thread, after every change."""
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
