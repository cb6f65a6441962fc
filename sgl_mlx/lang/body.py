"""`Body`: one run of a program's function; and the threads that run bodies."""

from __future__ import annotations

import atexit
import contextvars
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from sgl_mlx.errors import (
    EngineStoppedError,
    ProgramCancelled,
    ProgramTimeout,
    RequestAborted,
)
from sgl_mlx.lang.clock import Alarm, clock
from sgl_mlx.lang.scope import Scope, running_scope
from sgl_mlx.lang.setting import Setting

_PATIENCE = 1.0
"""Seconds that Python waits at exit for streaming programs before it warns of unfinished ones."""


class Body:
    """One run of a program's function on a state of its own.

    Args:
        name: the program's name, for messages.
        setting: the backend, the sampling parameters and the timeouts.
        function: the program's function with its arguments bound; called with the state.

    Attributes:
        state: the state that the function appends to.
        scope: the scope that cancels the run with all its branches and nested programs.
        error: the exception of the function; None while it runs and after it has returned.
    """

    def __init__(self, name: str, setting: Setting, function: Callable[[Any], Any]) -> None:
        self.name = name
        self.scope = Scope(running_scope())
        self.state = setting.new_state(self.scope)
        self.state.stream_executor.open = True
        self.error: BaseException | None = None
        self._function = function
        self._alarm: Alarm | None = None
        if setting.timeout is not None:
            late = ProgramTimeout(f"program {name}() took longer than {setting.timeout:g} s")
            self._alarm = clock.after(setting.timeout, partial(self.scope.cancel, late))

    def run(self) -> None:
        """Run the function to its end.

        Raises:
            ProgramTimeout: the run took longer than its timeout.
            RequestAborted: the run was cancelled.
            BaseException: any exception of the function.
        """
        try:
            with self.scope.entered():
                self.state.ret_value = self._function(self.state)
        except BaseException as error:
            self.error = self._reported(error)
            self.scope.cancel(error)
            if self.error is error:
                raise
            raise self.error from error
        finally:
            self.state.stream_executor.close()

    def run_quietly(self) -> None:
        """Run the function to its end; its exception is stored in `error` and not raised."""
        with suppress(BaseException):
            self.run()

    def finish(self) -> None:
        """Run the function as `run_quietly` does, then wait until all text is generated."""
        self.run_quietly()
        self.state.stream_executor.wait()
        self.silence()

    def silence(self) -> None:
        """Cancel the timer of the timeout, after the run has ended."""
        if self._alarm is not None:
            self._alarm.cancel()

    def drop(self) -> None:
        """Cancel the run unless its function has ended; called once nothing refers to the state."""
        if self.state.stream_executor.open:
            self.cancel("the state of the program was dropped")

    def cancel(self, why: str) -> None:
        """Cancel the run: its state fails with `RequestAborted(why)`."""
        self.scope.cancel(RequestAborted(why))
        self.silence()

    def _reported(self, error: BaseException) -> BaseException:
        """Return the error to raise for an exception of the function.

        For `ProgramCancelled`, the reason of the cancellation is returned instead, unless the
        calling program was cancelled, too.
        """
        parent = self.scope.parent
        if not isinstance(error, ProgramCancelled) or (parent is not None and parent.error):
            return error
        return self.scope.error or error


class BodyThread(threading.Thread):
    """A daemon thread that runs bodies in a copy of its creator's context variables.

    Each program gets a new thread, so that no program waits for the thread of another program.
    """

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        run = contextvars.copy_context().run
        super().__init__(target=run, args=(work,), name=f"sgl-mlx {name}", daemon=True)


class StreamingThread(BodyThread):
    """The thread of a program run with `stream=True`.

    It warns if the engine stops or Python ends before the run has ended.
    """

    def __init__(self, body: Body) -> None:
        super().__init__(body.name, self._work)
        self._body = body

    def _work(self) -> None:
        self._body.finish()
        error = self._body.state.stream_executor.error
        if isinstance(error, EngineStoppedError):
            self._say(f"was cut off: {error}")

    def say_unfinished(self) -> None:
        """Warn that Python ended before the program did, unless the program was cancelled."""
        if self._body.scope.error is None:
            self._say("was still running when Python ended")

    def _say(self, what: str) -> None:
        message = f"program {self._body.name}() {what}; call sync() on its state to wait for it"
        warnings.warn(message, RuntimeWarning, stacklevel=1)


@atexit.register
def _say_what_is_cut_off() -> None:
    # Engines register later, so they stop before this; their programs then end and warn themselves.
    threads = [t for t in threading.enumerate() if isinstance(t, StreamingThread)]
    end = time.monotonic() + _PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            thread.say_unfinished()
