"""Faults for tests: calls that raise at chosen times, and the checks when a fault is over."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import SglError
from sgl_mlx.runtime.engine import Engine
from tests.runtime.checks import assert_holds_nothing

PROMPTS = [[3 + (i * 31 + j * 7) % 250 for j in range(200)] for i in range(4)]
"""Prompts that do not fit into the pool together, so that KV goes to the disk tier and back."""
SLOTS = 500
ASKED = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True)
WAIT = 120
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
        self.fired = 0
        real, calls = getattr(owner, name), itertools.count()

        def call(*args: Any, **keywords: Any) -> Any:
            fails = when(next(calls))
            self.fired += fails
            if fails and not late:
                raise error
            result = real(*args, **keywords)
            if fails:
                raise error
            return result

        patch.setattr(owner, name, call)


def submit(engine: Engine, **options: Any) -> list[Future[Any]]:
    return [engine.submit(prompt, ASKED, **options) for prompt in PROMPTS]


def answers(futures: Sequence[Future[Any]]) -> list[Answer]:
    """The tokens of each answer, or the error in its place."""

    def answer(future: Future[Any]) -> Answer:
        error = future.exception(WAIT)
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


def assert_as_new(engine: Engine, right: Sequence[Answer]) -> None:
    """The engine answers, and no slot, lock, reading or request is left."""
    assert answers(submit(engine)) == right
    model = engine._loop.model
    engine.run_on_model(lambda _: model.scheduler.check())
    assert engine._flight._requests == {}
    assert engine._loop._calls == set()
    if model.disk is not None:
        assert model.disk.store.held_readings == 0
    assert_holds_nothing(engine)


def once(call: int) -> Callable[[int], bool]:
    return lambda number: number == call


def always(_: int) -> bool:
    return True
