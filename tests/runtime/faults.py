"""Faults for tests: calls that raise at chosen times, and the checks when a fault is over."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import SglError
from sgl_mlx.runtime.engine import Engine
from tests.patience import PATIENCE, eventually
from tests.runtime.checks import assert_holds_nothing
from tests.runtime.footprint import Footprint

PROMPTS = [[3 + (i * 31 + j * 7) % 250 for j in range(200)] for i in range(4)]
"""Prompts that do not fit into the pool together, so that KV goes to the disk tier and back."""
OTHERS = [[3 + (i * 37 + j * 11) % 250 for j in range(150)] for i in range(4)]
"""Prompts of which a disk tier has no block in common with the others."""
SLOTS = 500
ASKED = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True)
Answer = tuple[int, ...] | Exception


class Broken:
    """A function or method that raises in some of its calls while the patch lasts.

    Args:
        when: takes the number of the call, from 0, and says whether it raises.
        late: raise after the work is done, instead of before.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        when: Callable[[int], bool],
        error: BaseException,
        late: bool = False,
    ) -> None:
        self.fired = 0  # each error is new, for an old one holds the arrays of all it went through
        real, calls = getattr(owner, name), itertools.count()

        def call(*args: Any, **keywords: Any) -> Any:
            fails = when(next(calls))
            self.fired += fails
            if fails and not late:
                raise copy(error)
            result = real(*args, **keywords)
            if fails:
                raise copy(error)
            return result

        patch.setattr(owner, name, call)


def submit(
    engine: Engine, prompts: Sequence[Sequence[int]] = PROMPTS, **options: Any
) -> list[Future[Any]]:
    return [engine.submit(prompt, ASKED, **options) for prompt in prompts]


def answers(futures: Sequence[Future[Any]]) -> list[Answer]:
    """The tokens of each answer, or the error in its place."""

    def answer(future: Future[Any]) -> Answer:
        error = future.exception(PATIENCE)
        if error is None:
            return tuple(future.result()[0].token_ids)
        assert isinstance(error, Exception)
        return error

    return [answer(future) for future in futures]


def assert_right_or_told(
    found: Sequence[Answer], right: Sequence[Answer], says: str | None
) -> None:
    """Every answer is right, or an error of this package that says what happened."""
    for answer, wanted in zip(found, right, strict=True):
        if isinstance(answer, Exception):
            assert says is not None, repr(answer)
            assert isinstance(answer, SglError)
            assert re.search(says, str(answer)), repr(answer)
        else:
            assert answer == wanted


@dataclass
class Watched:
    """The engine that is looked at when the faults are over; another one after a restart."""

    engine: Engine


@contextmanager
def unharmed(
    engine: Engine, assert_right: Callable[[Engine], object], seconds: float = PATIENCE
) -> Iterator[Watched]:
    """Check that faults in the `with` block leave an engine as it was.

    It answers as before; no slot, lock, reading or request is left; and the process has as many
    bytes in arrays, as many threads and as many open files.

    Args:
        assert_right: asks the engine some requests, and asserts that the answers are right.
        seconds: how long threads and callbacks may take to end.
    """
    watched = Watched(engine)
    assert_right(engine)
    assert_idle(engine)
    before = Footprint.of(engine)
    del engine  # it may be shut down in the block
    yield watched
    assert_right(watched.engine)
    assert_idle(watched.engine, seconds)
    assert_given_back(watched.engine, before, seconds)


def assert_given_back(engine: Engine, before: Footprint, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (now := Footprint.of(engine)) != before and time.monotonic() < end:
        time.sleep(0.01)
    assert now == before, before.changes(now)


@contextmanager
def all_ended() -> Iterator[None]:
    """Check that the engines of the `with` block, which it shuts down, leave no thread or file."""
    threads, files = threading.active_count(), psutil.Process().num_fds()
    yield
    eventually(lambda: threading.active_count() <= threads, "all threads have ended")
    assert psutil.Process().num_fds() <= files


def assert_idle(engine: Engine, seconds: float = PATIENCE) -> None:
    """No slot, lock, reading or request is left."""
    model = engine._loop.model
    engine.run_on_model(lambda _: model.scheduler.check())
    eventually(lambda: not engine._flight._requests, "no request is in flight", seconds)
    eventually(lambda: not engine._loop._calls, "no call waits", seconds)
    if model.disk is not None:
        assert model.disk.store.held_readings == 0, "readings are held"
    assert_holds_nothing(engine)


def answering(
    right: Sequence[Answer], prompts: Sequence[Sequence[int]] = PROMPTS
) -> Callable[[Engine], None]:
    """Return an assertion that an engine gives the right answers to these prompts."""

    def assert_answers(engine: Engine) -> None:
        assert answers(submit(engine, prompts)) == right

    return assert_answers


def once(call: int) -> Callable[[int], bool]:
    return lambda number: number == call


def always(_: int) -> bool:
    return True
