"""`Stream`: a prompt whose steps are applied in order, while submitting a step never waits.

A stream has no thread of its own. `submit` queues steps, and applies steps until one has to wait
for the backend. The thread that completes the backend's future then applies the next steps.
`_current` is the step being applied or waited for, so only one thread applies steps at a time. No
callback runs while the lock is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import ProgramTimeout, RequestAborted
from sgl_mlx.lang import interpreter, ir
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.binding import Binding, Step
from sgl_mlx.lang.clock import clock
from sgl_mlx.lang.readable import Readable
from sgl_mlx.lang.scope import Scope, check_cancelled
from sgl_mlx.lang.site import call_site, note_site
from sgl_mlx.lang.transcript import Transcript
from sgl_mlx.waits import result_of


class Stream(Readable):
    """The prompt of a `ProgramState`, its variables, and the steps that are still to be applied.

    Args:
        backend: the backend that answers `gen` and `select`.
        transcript: the text written so far.
        defaults: the values of sampling parameters that a `gen` does not set itself.
        streaming: let readers see text while it is generated.
        scope: the scope of the program's run; cancelling the scope cancels this stream.
        request_timeout: the most seconds that one request to the backend may take.
    """

    def __init__(
        self,
        backend: Backend,
        transcript: Transcript,
        defaults: SamplingParams,
        streaming: bool = False,
        scope: Scope | None = None,
        request_timeout: float | None = None,
    ) -> None:
        super().__init__(transcript, streaming)
        self.backend = backend
        self.defaults = defaults
        self.scopes: dict[str, tuple[Binding, int]] = {}
        self._scope = scope
        self._request_timeout = request_timeout
        self._submitted_role = transcript.role
        self._waiting: Future[Any] | None = None
        if scope is not None:
            scope.add(self)

    # -- submitting ---------------------------------------------------------------------------

    def submit(self, expr: ir.Expr) -> None:
        """Queue an expression; returns at once.

        Raises:
            ProgramError: nested or unmatched roles. No part of the expression is queued then.
            InvalidParamsError: a sampling value out of range.
            ProgramCancelled: the program that calls this was cancelled.
        """
        check_cancelled()
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
        """Queue steps; returns at once. Raises `ProgramError` for nested or unmatched roles."""
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
        if self.open:
            self._notify()  # another thread may wait for these variables to be submitted
        self._advance()

    def fork(self, gap: int = 0) -> Stream:
        """Return a new stream with copies of this stream's text and variables.

        Call this only after `sync`.

        Args:
            gap: the number of positions to skip before new text.
        """
        child = Stream(
            self.backend,
            self.transcript.fork(gap),
            self.defaults,
            self.streaming,
            self._scope,
            self._request_timeout,
        )
        child.bindings = dict(self.bindings)
        return child

    def abort(self, error: BaseException | None = None) -> None:
        """Stop the stream and cancel its request; readers get `error`, or else `RequestAborted`.

        Without `error`, a stream that has nothing to do is left as it is.
        """
        if error is not None or not self._idle:
            self._fail(error or RequestAborted("the program was aborted or its state dropped"))

    def cancel(self, error: BaseException) -> None:
        """Stop the stream with this error, and close it; called by `Scope`.

        A stream is left as it is if all its steps are done and no function can submit more.
        """
        if self.open or not self._idle:
            self._fail(error)
            self.close()

    # -- applying -----------------------------------------------------------------------------

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
        elif asked.of_backend and self._request_timeout is not None:
            alarm = clock.after(self._request_timeout, partial(self._time_up, step))
            asked.future.add_done_callback(lambda _: alarm.cancel())
        asked.future.add_done_callback(partial(self._resume, step, asked))

    def _time_up(self, step: Step) -> None:
        if self._current is step:
            late = ProgramTimeout(f"a request took longer than {self._request_timeout:g} s")
            note_site(late, step.site)
            self._fail(late)

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
