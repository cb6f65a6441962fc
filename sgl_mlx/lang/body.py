"""One run of a program's function, in the calling thread or in a thread of its own."""

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
"""Seconds that Python's end waits for bodies to say what was cut off."""


class Body:
    """One run of a program's function on a state of its own.

    Args:
        name: the program's name, for messages.
        setting: the backend, the parameters and the timeouts.
        function: the program with its arguments; takes the state.

    Attributes:
        state: the state that the function appends to.
        scope: ends the run, with all branches and nested programs.
        error: the exception of the function; None while it runs and if it returned.
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
            ProgramTimeout: the run was ended because its time was up.
            BaseException: whatever the function raises.
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
        """Run the function to its end; what it raises stays in `error` and the state."""
        with suppress(BaseException):
            self.run()

    def finish(self) -> None:
        """Run the function as `run_quietly` does, and wait for all generation."""
        self.run_quietly()
        self.state.stream_executor.wait()
        self.silence()

    def silence(self) -> None:
        """Drop the timeout of a run that has ended."""
        if self._alarm is not None:
            self._alarm.cancel()

    def drop(self) -> None:
        """End a run whose caller no longer holds its state."""
        if self.state.stream_executor.open:
            self.cancel("the state of the program was dropped")

    def cancel(self, why: str) -> None:
        """End the run with `RequestAborted`."""
        self.scope.cancel(RequestAborted(why))
        self.silence()

    def _reported(self, error: BaseException) -> BaseException:
        """Return the reason for the end of a cancelled run, unless its caller was cancelled too."""
        parent = self.scope.parent
        if not isinstance(error, ProgramCancelled) or (parent is not None and parent.error):
            return error
        return self.scope.error or error


class BodyThread(threading.Thread):
    """A thread for bodies, which sees the context variables of the code that made it.

    Threads are made on demand, so that no program waits for another's thread. They do not keep
    Python from ending.
    """

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        run = contextvars.copy_context().run
        super().__init__(target=run, args=(work,), name=f"sgl-mlx {name}", daemon=True)


class StreamingThread(BodyThread):
    """The thread of a program run with `stream=True`; it says so when the run is cut off."""

    def __init__(self, body: Body) -> None:
        super().__init__(body.name, self._work)
        self._body = body

    def _work(self) -> None:
        self._body.finish()
        error = self._body.state.stream_executor.error
        if isinstance(error, EngineStoppedError):
            self._say(f"was cut off: {error}")

    def say_unfinished(self) -> None:
        """Warn that Python ends before the program, unless the program was cancelled."""
        if self._body.scope.error is None:
            self._say("was still running when Python ended")

    def _say(self, what: str) -> None:
        message = f"program {self._body.name}() {what}; call sync() on its state to wait for it"
        warnings.warn(message, RuntimeWarning, stacklevel=1)


@atexit.register
def _say_what_is_cut_off() -> None:
    # Engines stop before this, as they register later: their programs end, and say so themselves.
    threads = [t for t in threading.enumerate() if isinstance(t, StreamingThread)]
    end = time.monotonic() + _PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            thread.say_unfinished()
