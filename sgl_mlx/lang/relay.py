"""`Relay`: a backend that passes every call on to another backend; subclasses change some calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, StreamEvent
from sgl_mlx.lang.backend import Backend


class Relay:
    """A backend that passes every call on to another backend; see `Backend` for the methods."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def model_name(self) -> str:
        return self._backend.model_name

    @property
    def supports_parallel(self) -> bool:
        return self._backend.supports_parallel

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        return self._backend.render_chat(messages, add_generation_prompt)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        return self._backend.submit(prompt, params, on_event)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        return self._backend.score(prompt, choices, unconditional)

    def prefill(self, prompt: Prompt) -> Future[int]:
        return self._backend.prefill(prompt)

    def prefetch(self, prompt: Prompt) -> Future[int]:
        return self._backend.prefetch(prompt)

    def flush_cache(self) -> bool:
        return self._backend.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        return self._backend.get_server_info()

    def shutdown(self) -> None:
        self._backend.shutdown()


_: type[Backend] = Relay
