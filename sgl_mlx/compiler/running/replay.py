"""Replay: the Python body takes over the requests that the compiled beginning has already sent.

A graph that ends in a Break runs ahead of its program: its requests go out first, through `Ahead`.
Then the interpreter runs the whole Python body, on `Following`. A request of the body that `Ahead`
has already sent is not sent again: the body gets the same future. Two requests count as the same
only if prompt and parameters are equal, so the results are those of the body alone. Requests that
the body never makes are cancelled.
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
"""Requests sent ahead that the body has not made yet, oldest first, by their content."""


class _Through:
    """A backend that passes calls on to another; subclasses decide in `_ask` on requests.

    `submit`, `score` and `prefill` call `_ask` with a key, equal for equal requests, and a function
    that sends the request. All other calls go straight to the other backend.
    """

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
    """The backend of the compiled beginning: it sends each request and stores its future."""

    def _ask(self, key: Hashable, ask: Callable[[], Future[Any]]) -> Future[Any]:
        source = ask()
        waiting = self._asked.setdefault(key, deque())
        waiting.append(source)
        return _relay(source, waiting)


class Following(_Through):
    """The backend of the Python body: it takes stored futures, and sends only new requests.

    Attributes:
        ahead: the run of the compiled beginning. A reference is kept because dropping its states
            would cancel the requests that they still have to send.
    """

    def __init__(self, backend: Backend, asked: Asked, ahead: object) -> None:
        super().__init__(backend, asked)
        self.ahead = ahead

    def _ask(self, key: Hashable, ask: Callable[[], Future[Any]]) -> Future[Any]:
        waiting = self._asked.get(key)
        try:
            return waiting.popleft() if waiting else ask()
        except IndexError:  # another thread took the last future
            return ask()


def _relay(source: Future[Any], waiting: deque[Future[Any]]) -> Future[Any]:
    """Return a future with the value of `source`.

    Cancelling the new future cancels `source` only while `source` is still in `waiting`.
    """
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
