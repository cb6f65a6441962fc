"""`RunningProgram`: the state of a program whose function runs in another thread."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Self

from sgl_mlx.lang.body import Body, BodyThread, StreamingThread
from sgl_mlx.lang.readable import wakeups
from sgl_mlx.lang.state import ProgramState


class RunningProgram(ProgramState):
    """The state of a program whose body (its function) runs in another thread.

    Reading a variable waits until the body has appended it and its value is generated. `text()`,
    `sync()` and `ret_value` wait until the body has returned.

    These cancel the program: `cancel()`; the end of `with state:`; Ctrl-C in a thread that waits
    for the program; cancelling an asynchronous reader; dropping the last reference to the state
    while the body runs.
    """

    _whole = True

    def __init__(self, body: Body) -> None:
        self._body = body
        super().__init__(body.state.stream_executor)
        weakref.finalize(self, body.drop).atexit = False

    @classmethod
    def start(cls, body: Body, stream: bool) -> Self:
        """Start a body in a new thread, and return its state.

        With `stream`, the thread lives until all text is generated, and warns if the engine stops
        or Python ends earlier.
        """
        thread = StreamingThread(body) if stream else BodyThread(body.name, body.run_quietly)
        thread.start()
        return cls(body)

    def cancel(self) -> None:
        """Cancel the program: its requests at once, its body when it next appends or reads."""
        self._body.cancel("the program was cancelled")

    async def finished(self) -> None:
        """Wait until all text is generated, without blocking the event loop.

        Cancelling this call cancels the program.

        Raises:
            Exception: the exception of the body, or the error of generation.
        """
        stream = self.stream_executor
        with self._ended_by(asyncio.CancelledError), wakeups(stream) as changed:
            while not stream.ended:
                await changed.wait()
                changed.clear()
        self._body.silence()
        error = self._body.error or self._body.scope.error or stream.error
        if error is not None:
            raise error

    @property
    def ret_value(self) -> Any:
        """The return value of the body. Waits until the body returns; raises its exception."""
        with self._ended_by(KeyboardInterrupt):
            self.stream_executor.wait_closed()
        error = self._body.error or self._body.scope.error
        if error is not None:
            raise error
        return self._body.state.ret_value

    @ret_value.setter
    def ret_value(self, value: Any) -> None:
        self._body.state.ret_value = value

    def get_var(self, name: str) -> Any:
        with self._ended_by(KeyboardInterrupt):
            return super().get_var(name)

    def sync(self) -> None:
        with self._ended_by(KeyboardInterrupt):
            super().sync()

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        with self._ended_by(KeyboardInterrupt):
            yield from super().text_iter(var_name)

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        with self._ended_by(asyncio.CancelledError):
            async for piece in super().text_async_iter(var_name, return_meta_data):
                yield piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @contextmanager
    def _ended_by(self, interrupt: type[BaseException]) -> Iterator[None]:
        try:
            yield
        except interrupt:
            self.cancel()
            raise
