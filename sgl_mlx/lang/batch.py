"""Runs of one program over many rows of arguments, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.state import ProgramState

Row = tuple[Sequence[Any], Mapping[str, Any]]
Start = Callable[[Sequence[Any], Mapping[str, Any]], ProgramState]
Order = Callable[[Sequence[Row]], Sequence[int]]
"""A function from rows to their indices in the order in which they should start."""
_CHUNK = 200
"""The most runs that a generator keeps going at a time, so that a long batch fits in memory."""


def run_batch(
    start: Start,
    rows: Sequence[Row],
    num_threads: int | Literal["auto"],
    progress_bar: bool,
    generator_style: bool,
    order: Order,
) -> list[ProgramState] | Iterator[ProgramState]:
    """Run all rows and return their states in the order of the rows; see `Program.run_batch`.

    Args:
        order: chooses the order of starting; called for all rows, or for each chunk of a
            generator.
    """
    threads = _threads(num_threads, len(rows))
    chunk = _CHUNK if generator_style else max(len(rows), 1)
    states = _states(start, rows, threads, chunk, order)
    shown = _with_progress(states, len(rows)) if progress_bar else states
    return shown if generator_style else list(shown)


def _threads(num_threads: int | Literal["auto"], runs: int) -> int:
    if num_threads == "auto":
        num_threads = max(96, 16 * (os.cpu_count() or 1))
    if not isinstance(num_threads, int) or num_threads < 1:
        raise ProgramError(f'num_threads must be "auto" or at least 1, got {num_threads!r}')
    return min(num_threads, max(runs, 1))


def _states(
    start: Start, rows: Sequence[Row], threads: int, chunk: int, order: Order
) -> Iterator[ProgramState]:
    def finished(row: Row) -> ProgramState:
        state = start(*row)
        state.error()
        return state

    with ThreadPoolExecutor(threads, thread_name_prefix="sgl-batch") as pool:
        for begin in range(0, len(rows), chunk):
            part = rows[begin : begin + chunk]
            started = {i: pool.submit(finished, part[i]) for i in order(part)}
            try:
                for i in range(len(part)):
                    yield started.pop(i).result()
            finally:
                # An error, or a generator closed early, cancels the rows that have not begun.
                for future in started.values():
                    future.cancel()


def _with_progress(states: Iterable[ProgramState], total: int) -> Iterator[ProgramState]:
    from rich.progress import track  # only here: importing the language must stay quick

    return iter(track(states, total=total, description="programs"))
