"""A backend that leaves some requests unanswered, and programs of many shapes to run on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.lang.body import BodyThread
from sgl_mlx.testing import Call, ScriptedBackend
from tests.patience import PATIENCE

NEVER = "never"


class Selective(ScriptedBackend):
    """Answers at once, except for prompts that contain NEVER."""

    def __init__(self, **options: Any) -> None:
        super().__init__("answer", manual=True, logprobs={"a": -1.0}, **options)

    def _ask(self, call: Call, answer: Callable[[], Any]) -> Future[Any]:
        future = super()._ask(call, answer)
        if NEVER not in call.text:
            self.step(call)
        return future

    def left(self) -> list[str]:
        """Return what still runs: unanswered requests and threads of bodies."""
        threads = [t.name for t in threading.enumerate() if isinstance(t, BodyThread)]
        return threads + [call.text for call in self.pending]

    def check_nothing_is_left(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.left() and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert self.left() == []


@sgl.function
def read(s: Any, word: str) -> str:
    s += word + sgl.gen("x")
    return str(s["x"])


@sgl.function
def unread(s: Any, word: str) -> str:
    s += word + sgl.gen("x")
    return "answer"


@sgl.function
def retry(s: Any, word: str) -> str:
    """Catch every exception and try again, as programs for unreliable servers do."""
    while True:
        try:
            s += word + sgl.gen("x")
            return str(s["x"])
        except Exception:
            pass


@sgl.function
def branches(s: Any, word: str) -> str:
    forks = s.fork(3)
    forks += word + sgl.gen("x")
    forks.join()
    return str(s["x"][0])


@sgl.function
def threaded_branches(s: Any, word: str) -> str:
    forks = s.fork(2)
    forks += word + sgl.gen("x")
    with ThreadPoolExecutor(2) as pool:
        return str(next(pool.map(lambda fork: fork["x"], forks)))


@sgl.function
def nested(s: Any, word: str) -> str:
    backend = s.stream_executor.backend
    inner = read.run(word, backend=backend)
    return str(inner.ret_value)


@sgl.function
def nested_batch(s: Any, word: str) -> str:
    backend = s.stream_executor.backend
    states = read.run_batch([[word], [word]], backend=backend)
    return str(next(iter(states)).ret_value)


@sgl.function
def scored(s: Any, word: str) -> str:
    s += word
    return "answer" if sgl.score(s, ["a", "b"]).decision == "a" else ""


@sgl.function
def chosen(s: Any, word: str) -> str:
    s += word + sgl.select("x", ["a", "b"])
    return "answer" if s["x"] == "a" else ""


PROGRAMS = [
    read,
    unread,
    retry,
    branches,
    threaded_branches,
    nested,
    nested_batch,
    scored,
    chosen,
    read.compile(),
    branches.compile(),
]
