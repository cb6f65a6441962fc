"""Batches: runs of one program with many sets of arguments, many runs at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from sgl_mlx import bounds
from sgl_mlx.errors import BatchError, ProgramError, RequestAborted
from sgl_mlx.lang.body import Body, BodyThread
from sgl_mlx.lang.scope import Scope, check_cancelled, running_scope
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.waits import result_of

Row = tuple[Sequence[Any], Mapping[str, Any]]
Make = Callable[[Sequence[Any], Mapping[str, Any]], Body]
Order = Callable[[Sequence[Row]], Sequence[int]]
"""A function that returns the indices of a batch's rows in the order in which to start them."""
_CHUNK = 200
"""The number of rows in a chunk of a generator of states, which bounds the memory used."""


class Chunk:
    """Some rows of a batch, and the threads that run them; each thread runs one row after another.

    A chunk is a context manager: an error in its `with` block cancels all its runs.

    Attributes:
        futures: one future for each run, in the order of the rows; its result is the finished
            `Body`. The consumer removes futures from the left.
    """

    def __init__(self, make: Make, rows: Sequence[Row], order: Sequence[int], threads: int) -> None:
        self.futures: deque[Future[Body]] = deque(Future() for _ in rows)
        futures = list(self.futures)
        self._make = make
        self._waiting = deque((rows[i], futures[i]) for i in order)
        self._scope = Scope(running_scope())
        self._scope.add(self)
        with self._scope.entered():
            for _ in range(min(threads, len(rows))):
                BodyThread("batch", self._work).start()

    def _work(self) -> None:
        while self._scope.error is None:
            try:
                row, future = self._waiting.popleft()
            except IndexError:
                return
            body = self._make(*row)
            body.finish()
            with suppress(InvalidStateError):  # cancelled meanwhile
                future.set_result(body)

    def cancel(self, error: BaseException) -> None:
        """Cancel all futures, which wakes threads that wait for them; called by `Scope`."""
        for future in list(self.futures):
            future.cancel()

    def __enter__(self) -> Chunk:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._scope.cancel(RequestAborted("the batch was cancelled"))
        if kind is not None and issubclass(kind, CancelledError):
            check_cancelled()


@dataclass
class BatchRun:
    """One batch: its rows, the way to run them, and the exceptions raised so far.

    A row is the arguments of one run: `(positional arguments, keyword arguments)`.

    Attributes:
        make: a function from the arguments of a row to its run, a `Body`.
        rows: all rows of the batch.
        num_threads: the largest number of runs at a time; "auto" means 16 per CPU core, at least
            96.
        progress_bar: show a progress bar.
        order: returns the order in which to start rows. It is called with all rows, or, in a
            generator of states, with each chunk of rows.
    """

    make: Make
    rows: Sequence[Row]
    num_threads: int | Literal["auto"]
    progress_bar: bool
    order: Order
    _errors: dict[int, BaseException] = field(default_factory=dict)
    _taken: int = 0

    def __post_init__(self) -> None:
        self._threads = _threads(self.num_threads)

    def run(self) -> list[ProgramState]:
        """Run all rows, and return the states in the order of the rows.

        Raises:
            BatchError: after all runs have ended, if the function raised in any of them.
        """
        states = list(self._states(len(self.rows)))
        self._raise_errors(states)
        return states

    def iterate(self) -> Iterator[ProgramState]:
        """Yield the states in the order of the rows. Rows are started in chunks of `_CHUNK`.

        Raises:
            BatchError: after all states are yielded, if the function raised in any run.
        """
        yield from self._states(_CHUNK)
        self._raise_errors()

    async def run_async(self) -> list[ProgramState]:
        """Run all rows as `run` does, without blocking the event loop.

        Cancelling the task that waits for this cancels all runs.
        """
        states = [state async for state in self._states_async(len(self.rows))]
        self._raise_errors(states)
        return states

    async def iterate_async(self) -> AsyncIterator[ProgramState]:
        """Yield the states as `iterate` does, without blocking the event loop."""
        async for state in self._states_async(_CHUNK):
            yield state
        self._raise_errors()

    def _states(self, size: int) -> Iterator[ProgramState]:
        with self._progress() as advance:
            for chunk in self._chunks(size):
                with chunk:
                    while chunk.futures:
                        yield self._take(result_of(chunk.futures.popleft()))
                        advance()

    async def _states_async(self, size: int) -> AsyncIterator[ProgramState]:
        with self._progress() as advance:
            for chunk in self._chunks(size):
                with chunk:
                    while chunk.futures:
                        yield self._take(await asyncio.wrap_future(chunk.futures.popleft()))
                        advance()

    def _chunks(self, size: int) -> Iterator[Chunk]:
        for begin in range(0, len(self.rows), max(size, 1)):
            part = self.rows[begin : begin + size]
            yield Chunk(self.make, part, self.order(part), self._threads)

    def _take(self, body: Body) -> ProgramState:
        if body.error is not None:
            self._errors[self._taken] = body.error
        self._taken += 1
        return body.state

    def _raise_errors(self, states: Sequence[ProgramState] = ()) -> None:
        if self._errors:
            error = BatchError(self._errors, len(self.rows), states)
            raise error from self._errors[min(self._errors)]

    @contextmanager
    def _progress(self) -> Iterator[Callable[[], object]]:
        if not self.progress_bar:
            yield lambda: None
            return
        from rich.progress import Progress  # only here: importing the language must stay quick

        with Progress() as progress:
            yield partial(progress.advance, progress.add_task("programs", total=len(self.rows)))


def _threads(num_threads: int | Literal["auto"]) -> int:
    if isinstance(num_threads, str) and num_threads == "auto":
        return max(96, 16 * (os.cpu_count() or 1))
    count = bounds.whole(num_threads)
    if count is None or count < 1:
        bounds.refuse("num_threads", num_threads, '"auto" or at least 1', ProgramError)
    return count
