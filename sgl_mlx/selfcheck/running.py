"""Running of programs on one engine, one after another or at once, beside aborted requests."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sgl_mlx.core import SamplingParams, StreamEvent, Text
from sgl_mlx.errors import SglError
from sgl_mlx.lang.program import Program as LangProgram
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.selfcheck.draw import draw_texts
from sgl_mlx.selfcheck.recording import Answer, Recording, Request
from sgl_mlx.selfcheck.statements import Function
from sgl_mlx.selfcheck.ways import Group, Way

if TYPE_CHECKING:
    from sgl_mlx.runtime.engine import Engine

COUNTED = (
    *("cached_tokens", "preemptions", "drafted_tokens", "accepted_tokens"),
    "restored_tokens",
)
"""Counts of `EngineStats` that tell how much of a way was exercised."""

_SECONDS = 600
"""Seconds after which a program without an answer is given up; its answers are then missing."""
_NEIGHBOURS = 4
_MOST_AT_ONCE = 64


def counted(engine: Engine) -> dict[str, int]:
    """Return an engine's counts `COUNTED`."""
    stats = engine.get_server_info()["stats"]
    return {name: int(stats.get(name, 0)) for name in COUNTED}


def run_on(
    engine: Engine,
    way: Way,
    groups: Sequence[Group],
    r: random.Random,
) -> list[list[Answer]]:
    """Run groups of functions on an engine in one way; return the answers of each group.

    Args:
        r: draws the requests beside them, for a way that runs all groups together.
    """
    recordings = [Recording(engine) for _ in groups]
    jobs = [
        (recording, function, settings)
        for recording, (functions, settings) in zip(recordings, groups, strict=True)
        for function in functions
    ]
    if not way.together:
        for recording, function, settings in jobs:
            run_one(recording, function, settings, way.streamed)
        return [recording.answers for recording in recordings]
    workers = min(len(jobs), _MOST_AT_ONCE)
    with neighbours(engine, r), ThreadPoolExecutor(max(workers, 1)) as pool:
        done = [pool.submit(run_one, *job, way.streamed) for job in jobs]
        for future in done:
            future.result()
    return [recording.answers for recording in recordings]


def run_one(
    recording: Recording, function: Function, settings: Mapping[str, Any], streamed: bool
) -> None:
    """Run a function as a program to its end; errors of requests are in the recording."""

    def program(s: ProgramState) -> None:
        function(s)

    with suppress(SglError):
        state = LangProgram(program).run(
            backend=recording, stream=streamed, timeout=_SECONDS, **settings
        )
        if streamed:
            pieces = "".join(state.text_iter())
            if state.error() is None and pieces != state.text():
                recording.answers.append(Answer(Request(()), pieces=(state.text(), pieces)))
        state.sync()


@contextmanager
def neighbours(engine: Engine, r: random.Random) -> Iterator[None]:
    """Keep a few other requests beside the `with` block, each aborted after some tokens."""
    futures: list[Future[Any]] = []
    params = SamplingParams(max_new_tokens=40, temperature=0, ignore_eos=True)

    def begin(number: int, events: int) -> None:
        seen = 0

        def told(_: StreamEvent) -> None:
            nonlocal seen
            seen += 1
            if seen >= events and number < len(futures):
                futures[number].cancel()

        futures.append(engine.submit((Text(draw_texts(r)),), params, told))

    for number in range(_NEIGHBOURS):
        begin(number, r.randint(1, 12))
    try:
        yield
    finally:
        for future in futures:
            future.cancel()
