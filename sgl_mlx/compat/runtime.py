"""SGLang's `Runtime`: an engine in this process, with the interface of a server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

from sgl_mlx.lang.backend import Backend

_LOG_LEVELS = {"critical", "error", "warning", "info", "debug"}


class Runtime:
    """An engine in this process with the interface of SGLang's server: `Runtime(model_path=...)`.

    Args:
        args: `(log_level, launch_timeout)` as in newer SGLang, or `(model_path,)` as in older
            SGLang.
        log_level, launch_timeout: no effect, since no server runs.
        server_args: the options of `Engine`.

    Attributes:
        endpoint: the engine, a `Backend`.
        url, generate_url, pid: None, since no server runs.
    """

    url = generate_url = pid = None

    def __init__(
        self,
        *args: Any,
        log_level: str = "error",
        launch_timeout: float = 300.0,
        **server_args: Any,
    ) -> None:
        # Imported here so that the language can be imported without mlx
        from sgl_mlx.compat.engine import Engine

        if args and str(args[0]).lower() not in _LOG_LEVELS:
            server_args.setdefault("model_path", args[0])
        self.server_args = server_args
        self.endpoint: Backend = Engine(**server_args)
        self._engine: Any = self.endpoint

    def generate(
        self,
        prompt: str | list[str],
        sampling_params: Mapping[str, Any] | None = None,
        return_logprob: bool = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        lora_path: Any = None,
    ) -> str:
        """Continue one or more prompts; return the result of `Engine.generate` as JSON text.

        Args:
            prompt: a text or a list of texts.
            sampling_params: parameters for all prompts; see `SamplingParams`.
            return_logprob, logprob_start_len, top_logprobs_num: as in `SamplingParams`.
            lora_path: no effect; a warning says so.
        """
        options = {
            "return_logprob": return_logprob,
            "logprob_start_len": logprob_start_len,
            "top_logprobs_num": top_logprobs_num,
            "lora_path": lora_path,
        }
        given = {k: v for k, v in options.items() if v is not None and v is not False}
        return json.dumps(self._engine.generate(prompt, sampling_params, **given))

    async def async_generate(
        self, prompt: str, sampling_params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """Continue a prompt, and yield the new text piece by piece.

        Args:
            sampling_params: see `SamplingParams`.
        """
        shown = 0
        async for event in await self._engine.async_generate(prompt, sampling_params, stream=True):
            text = event["text"]
            if len(text) > shown:
                yield text[shown:]
            shown = len(text)

    add_request = async_generate

    def get_tokenizer(self) -> Any:
        """Return the tokenizer, with the methods of `transformers`."""
        return self._engine.get_tokenizer()

    def cache_prefix(self, prefix: str) -> None:
        """Prefill a text, so that its KV cache is ready for prompts that begin with the text."""
        self._engine.cache_prefix(prefix)

    def encode(self, prompt: str | list[str]) -> str:
        """Embed one or more prompts; return the result of `Engine.encode` as JSON text."""
        return json.dumps(self._engine.encode(prompt))

    def start_profile(self, *_: Any, **__: Any) -> None:
        """Do nothing: the counters in `get_server_info()["stats"]` are always on."""

    stop_profile = start_profile

    async def get_server_info(self) -> dict[str, Any]:
        return self.endpoint.get_server_info()

    def flush_cache(self) -> bool:
        return self.endpoint.flush_cache()

    def shutdown(self) -> None:
        self.endpoint.shutdown()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()
