"""Engines over the same ranks take turns: one at a time, whoever asked first."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.ranks.share import Share
from sgl_mlx.runtime.ranks.turns import Turns


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_turns_are_taken_one_at_a_time_in_the_order_asked(failing: list[bool]) -> None:
    turns, taken, within = Turns(), list[int](), threading.Semaphore(1)

    def run(number: int) -> None:
        with suppress(ZeroDivisionError), turns.turn():
            assert within.acquire(blocking=False)
            taken.append(number)
            within.release()
            if failing[number]:
                raise ZeroDivisionError  # the next one gets its turn all the same

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(failing))]
    with turns.turn():
        for asked, thread in enumerate(threads, 2):
            thread.start()
            while turns.asked < asked:
                time.sleep(0.001)
        assert not taken
    for thread in threads:
        thread.join(60)
    assert taken == list(range(len(failing)))


def test_a_share_is_of_one_model_at_a_time() -> None:
    share = Share(cast(Any, None))
    share.take(1, EngineConfig(model_path="a"))
    share.take(2, EngineConfig(model_path="a", adapter="x", max_total_tokens=5))
    for other in (EngineConfig(model_path="b"), EngineConfig(model_path="a", pipeline=True)):
        with pytest.raises(BackendError, match="one model at a time"):
            share.take(3, other)
    share.drop(1)
    share.drop(2)
    share.take(3, EngineConfig(model_path="b"))
