"""Replay: requests of a compiled beginning are given to the Python body when it asks the same.

A graph that ends in a Break runs ahead of its program: its requests go out first, through `Ahead`.
Then the body runs once, in the interpreter, on `Following`, where a request that is already under
way or answered is not made again. Two requests are the same only if prompt and parameters are
equal, so the body always gets what it would have got; what it never asks for is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, StreamEvent
from sgl_mlx.lang.backend import Backend

OnEvent = Callable[[StreamEvent], None] | None
Asked = dict[Hashable, deque["Future[Any]"]]
"""Requests that the body has not asked for yet, in order."""


class _Through:
    """A backend in front of another; what is not overridden passes through."""

    def __init__(self, backend: Backend, asked: Asked) -> None:
        self._backend = backend
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(
        self, prompt: Prompt, params: SamplingParams, on_event: OnEvent = None
    ) -> Future[tuple[Completion, ...]]:
        key = ("submit", prompt, params)
        return self._ask(key, partial(self._backend.submit, prompt, params, on_event))

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        key = ("score", prompt, tuple(choices), unconditional)
        return self._ask(key, partial(self._backend.score, prompt, choices, unconditional))

    def prefill(self, prompt: Prompt) -> Future[int]:
        return self._ask(("prefill", prompt), partial(self._backend.prefill, prompt))

    def _ask(self, key: Hashable, ask: Callable[[], Future[Any]]) -> Future[Any]:
        raise NotImplementedError


class Ahead(_Through):
    """For the compiled beginning: asks, and remembers what it asked."""

    def _ask(self, key: Hashable, ask: Callable[[], Future[Any]]) -> Future[Any]:
        source = ask()
        waiting = self._asked.setdefault(key, deque())
        waiting.append(source)
        return _relay(source, waiting)


class Following(_Through):
    """For the body: takes what has been asked already.

    Attributes:
        ahead: kept alive as long as this is, since a state that is dropped asks no further.
    """

    def __init__(self, backend: Backend, asked: Asked, ahead: object) -> None:
        super().__init__(backend, asked)
        self.ahead = ahead

    def _ask(self, key: Hashable, ask: Callable[[], Future[Any]]) -> Future[Any]:
        waiting = self._asked.get(key)
        try:
            return waiting.popleft() if waiting else ask()
        except IndexError:  # another branch was quicker
            return ask()


def _relay(source: Future[Any], waiting: deque[Future[Any]]) -> Future[Any]:
    """A future of the same value; cancelling it cancels the source only while nobody has it."""
    relay: Future[Any] = Future()

    def pass_on(done: Future[Any]) -> None:
        if done.cancelled():
            relay.cancel()
        elif relay.set_running_or_notify_cancel():
            error = done.exception()
            relay.set_exception(error) if error else relay.set_result(done.result())

    def pass_back(done: Future[Any]) -> None:
        if done.cancelled() and source in waiting:
            source.cancel()

    source.add_done_callback(pass_on)
    relay.add_done_callback(pass_back)
    return relay
