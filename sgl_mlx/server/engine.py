"""The engine and its tokenizer as the server sees them.

`sgl_mlx.runtime.engine.Engine` satisfies these protocols by its methods alone, so that the server
imports neither the runtime nor MLX, and tests serve a scripted engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from sgl_mlx.core import Completion, Prompt, SamplingParams, StreamEvent


class Detokenizer(Protocol):
    """Text of a growing sequence of tokens."""

    def add(self, token_id: int) -> str: ...


class ServedTokenizer(Protocol):
    """Text to tokens and back, and the model's chat template."""

    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    chat_template: str | None
    vocab_size: int

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...

    def decode(
        self, ids: Sequence[int], skip_special: bool = True, at_start: bool = True
    ) -> str: ...

    def detokenizer(self, skip_special: bool = True, at_start: bool = False) -> Detokenizer: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_text(self, token_id: int) -> str: ...

    def added_token(self, text: str) -> int | None: ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str: ...


class ServedEngine(Protocol):
    """A model that continues prompts, given as parts or as token ids."""

    @property
    def model_name(self) -> str: ...

    @property
    def tokenizer(self) -> ServedTokenizer: ...

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
        *,
        rid: str,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Future[tuple[Completion, ...]]: ...

    def flush_cache(self) -> bool: ...

    def get_server_info(self) -> dict[str, Any]: ...
