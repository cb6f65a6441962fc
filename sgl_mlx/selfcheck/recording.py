"""`Recording`: a backend that keeps every request of a program together with its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sgl_mlx.core import (
    ChoiceScores,
    Completion,
    PartialCompletion,
    Prompt,
    SamplingParams,
    StreamEvent,
    prompt_text,
)
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.relay import Relay

Completions = tuple[Completion, ...]


@dataclass(frozen=True)
class Request:
    """A request to a model; two requests with the same content are equal.

    Attributes:
        params: how to continue the prompt; None for the scores of `choices`.
    """

    prompt: Prompt
    params: SamplingParams | None = None
    choices: tuple[str, ...] = ()
    unconditional: bool = False

    def __str__(self) -> str:
        asked = f"choices {list(self.choices)}" if self.params is None else _shown(self.params)
        return f"{prompt_text(self.prompt)[-80:]!r}, {asked}"


def _shown(params: SamplingParams) -> str:
    plain = SamplingParams()
    changed = {k: v for k, v in vars(params).items() if v != getattr(plain, k)}
    return ", ".join(f"{k}={v!r}" for k, v in changed.items())


@dataclass(frozen=True)
class Answer:
    """The answer of a request.

    Attributes:
        samples: the completions; empty for scores, and after an error.
        streamed: the same completions put together from stream events; empty if not streamed.
        scores: logprobs of the choices; None for a completion, and after an error.
        error: type of the error that the request ended with; empty without one.
        pieces: a program's whole text and its joined streamed pieces, if they differ.
    """

    request: Request
    samples: Completions = ()
    streamed: Completions = ()
    scores: ChoiceScores | None = None
    error: str = ""
    pieces: tuple[str, str] | None = None


class Recording(Relay):
    """A backend that passes everything on to an engine, and keeps requests with their answers.

    Attributes:
        answers: the answers, in the order in which they came.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._lock = threading.Lock()
        self.answers: list[Answer] = []

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[Completions]:
        request = Request(prompt, params)
        pieces = [PartialCompletion() for _ in range(params.n)]

        def told(event: StreamEvent) -> None:
            pieces[event.sample].add(event)
            if on_event is not None:
                on_event(event)

        def keep(future: Future[Completions]) -> None:
            if not self._failed(request, future):
                streamed = tuple(map(_whole, pieces)) if on_event is not None else ()
                self._keep(Answer(request, future.result(), streamed))

        future = self._backend.submit(prompt, params, told if on_event is not None else None)
        # before the program's own callback, so that an answer is kept before it is used
        future.add_done_callback(keep)
        return future

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        request = Request(prompt, None, tuple(choices), unconditional)

        def keep(future: Future[ChoiceScores]) -> None:
            if not self._failed(request, future):
                self._keep(Answer(request, scores=future.result()))

        future = self._backend.score(prompt, choices, unconditional)
        future.add_done_callback(keep)
        return future

    def _failed(self, request: Request, future: Future[Any]) -> bool:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._keep(Answer(request, error=type(error).__name__))
        return future.cancelled() or error is not None

    def _keep(self, answer: Answer) -> None:
        with self._lock:
            self.answers.append(answer)


def _whole(pieces: PartialCompletion) -> Completion:
    assert pieces.finish_reason is not None
    return Completion(
        pieces.text,
        tuple(pieces.token_ids),
        pieces.finish_reason,
        pieces.prompt_tokens,
        pieces.cached_tokens,
        pieces.id,
        pieces.logprobs,
    )
