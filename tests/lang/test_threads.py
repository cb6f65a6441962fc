"""Many programs and many answering threads: each answer arrives once and in order."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Completion, SamplingParams, StreamEvent
from sgl_mlx.errors import RequestAborted
from sgl_mlx.lang.setting import Setting
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE


class ThreadedBackend(ScriptedBackend):
    """A backend that answers from a few threads, in no particular order."""

    def __init__(self, pool: ThreadPoolExecutor, **options: Any) -> None:
        super().__init__(lambda prompt: f"<{prompt.count('|')}>", manual=True, **options)
        self._pool = pool

    def submit(
        self,
        prompt: Any,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        future = super().submit(prompt, params, on_event)
        self._pool.submit(self._answer_one)
        return future

    def prefill(self, prompt: Any) -> Future[int]:
        future = super().prefill(prompt)
        self._pool.submit(self._answer_one)
        return future

    def _answer_one(self) -> None:
        pending = self.pending
        if pending:
            self.step(random.choice(pending) if len(pending) < 4 else None)
        while self.pending:
            self.step()


@sgl.function
def branching(s: Any, number: int) -> None:
    s += f"{number}|" + sgl.gen("first") + "|"
    forks = s.fork(3)
    forks += lambda i: f"{i}|" + sgl.gen("view") + "|" + sgl.gen("last")
    forks.join()
    s += " ".join(s["view"]) + "|" + sgl.gen("end")


def test_batches_of_branching_programs_come_out_right() -> None:
    with ThreadPoolExecutor(4) as pool:
        backend = ThreadedBackend(pool)
        states = branching.run_batch([[i] for i in range(40)], backend=backend, num_threads=16)
        for i, state in enumerate(states):
            assert state.text() == f"{i}|<1>|<3> <3> <3>|<3>"
            assert state["last"] == ["<4>"] * 3


def test_streams_read_while_other_threads_write_lose_nothing() -> None:
    with ThreadPoolExecutor(4) as pool:
        backend = ThreadedBackend(pool, piece=1)
        states = [branching.run(i, backend=backend, stream=True) for i in range(20)]
        for i, state in enumerate(states):
            assert "".join(state.text_iter()) == f"{i}|<1>|<3> <3> <3>|<3>"


def test_aborting_at_any_time_leaves_every_reader_with_an_answer_or_an_error() -> None:
    with ThreadPoolExecutor(4) as pool, ThreadPoolExecutor(2) as readers:
        backend = ThreadedBackend(pool)
        for _ in range(100):
            state = Setting.of(backend, {}).new_state()
            state += "|" + sgl.gen("a") + "|" + sgl.gen("b")
            reading = readers.submit(state.get_var, "b")
            state.stream_executor.abort()
            error = reading.exception(timeout=PATIENCE)
            assert isinstance(error, RequestAborted) or reading.result() == "<2>"
            assert error is state.error()


@pytest.mark.parametrize("value", ["one", ValueError("boom")])
def test_an_answer_may_come_while_submitting(value: Any) -> None:
    state = Setting.of(ScriptedBackend([value]), {}).new_state()
    state += sgl.gen("x")
    assert state.stream_executor.binding("x").value.done()
