"""Protocols of the engine and the tokenizer that the server needs.

`sgl_mlx.runtime.engine.Engine` has these methods without inheriting from the protocols. So the
server imports neither the runtime nor MLX, and tests can serve a scripted engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, StreamEvent


class Detokenizer(Protocol):
    """An incremental decoder: `add` takes the next token and returns the text completed by it."""

    def add(self, token_id: int) -> str: ...


class ServedTokenizer(Protocol):
    """A tokenizer: encodes and decodes text, and renders the model's chat template."""

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


class ServedEmbedder(Protocol):
    """An embedding model; the methods are documented at `Embedder` of the runtime."""

    @property
    def fault(self) -> str: ...

    def tokens(self, text: str) -> list[int]: ...

    def embed(
        self, tokens: Sequence[int], stopped: Callable[[], bool] = lambda: False
    ) -> list[float]: ...


class ServedEngine(Protocol):
    """An engine that generates text after prompts, and scores choices after them.

    The methods are documented at `sgl_mlx.runtime.engine.Engine`.
    """

    @property
    def model_name(self) -> str: ...

    @property
    def failure(self) -> str | None: ...

    @property
    def supports_parallel(self) -> bool: ...

    @property
    def tokenizer(self) -> ServedTokenizer: ...

    @property
    def embedder(self) -> ServedEmbedder | None: ...

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
        *,
        rid: str,
        priority: int = 0,
        timeout: float | None = None,
        extra_key: str | None = None,
    ) -> Future[tuple[Completion, ...]]: ...

    def score(
        self,
        prompt: Prompt,
        choices: Sequence[str],
        unconditional: bool = False,
        *,
        priority: int = 0,
        timeout: float | None = None,
        extra_key: str | None = None,
    ) -> Future[ChoiceScores]: ...

    def flush_cache(self) -> bool: ...

    def get_server_info(self) -> dict[str, Any]: ...
