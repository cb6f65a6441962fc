"""A server that speaks SGLang's HTTP protocol."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPException
from typing import Any, NoReturn

from sgl_mlx.core import (
    ChoiceScore,
    ChoiceScores,
    Completion,
    Prompt,
    SamplingParams,
    StreamEvent,
    TokenLogprob,
)
from sgl_mlx.errors import BackendError, TokenizerError
from sgl_mlx.lang.pictures import around, has_pictures
from sgl_mlx.lang.templates.chat_template import (
    ChatTemplate,
    get_chat_template,
    get_chat_template_by_model_path,
)
from sgl_mlx.protocol import sglang as wire

_THREADS = 64
"""Requests under way at a time; each waits in a thread of its own."""


class RuntimeEndpoint:
    """A `Backend` over HTTP.

    Args:
        base_url: of the server, as `http://localhost:30000`.
        api_key: sent as a bearer token.
        verify: a file of certificates to trust, or False to trust any.
        chat_template_name: one of `get_chat_template`; otherwise chosen by the model's name.

    Attributes:
        chat_template: the template in use; may be replaced.
    """

    supports_parallel = False

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | bool | None = None,
        chat_template_name: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._ssl = _ssl_context(verify)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sgl-endpoint")
        self._template_name = chat_template_name

    @cached_property
    def model_info(self) -> dict[str, Any]:
        """What the server says of its model; raises `BackendError` when it cannot be reached."""
        info: dict[str, Any] = self._get("/get_model_info")
        return info

    @property
    def model_name(self) -> str:
        return str(self.model_info["model_path"])

    def get_model_name(self) -> str:
        return self.model_name

    @cached_property
    def chat_template(self) -> ChatTemplate:
        if self._template_name is not None:
            return get_chat_template(self._template_name)
        return get_chat_template_by_model_path(self.model_name)

    # -- Backend ------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> NoReturn:
        raise TokenizerError("a server does not tell its chat template; set .chat_template")

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        mark = around(self.chat_template.image_token)[1] if has_pictures(prompt) else ""
        payload = wire.payload(prompt, params, mark)
        if on_event is None:
            return self._pool.submit(self._generate, payload)
        return self._pool.submit(self._generate_stream, payload, on_event)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        return self._pool.submit(self._score, wire.flat_text(prompt), list(choices), unconditional)

    def prefill(self, prompt: Prompt) -> Future[int]:
        return self._pool.submit(self._prefill, wire.flat_text(prompt))

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """A prefill: servers have no other way. Its failure is nobody's."""
        return self._pool.submit(self._prefill_if_possible, wire.flat_text(prompt))

    def cache_prefix(self, prefix_str: str) -> None:
        """Compute a text ahead of the programs that begin with it."""
        self._prefill(prefix_str)

    def flush_cache(self) -> bool:
        with self._open("/flush_cache", method="POST") as response:
            return bool(response.status == 200)

    def get_server_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._get("/get_server_info")
        return info

    def shutdown(self) -> None:
        """Cancel what has not begun; the server stays up."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- requests -----------------------------------------------------------------------------

    def _generate(self, payload: dict[str, Any]) -> tuple[Completion, ...]:
        answer = self._post("/generate", payload)
        outputs = answer if isinstance(answer, list) else [answer]
        return tuple(wire.completion(output["text"], output["meta_info"]) for output in outputs)

    def _generate_stream(
        self, payload: dict[str, Any], on_event: Callable[[StreamEvent], None]
    ) -> tuple[Completion, ...]:
        samples: dict[int, Completion] = {}
        with self._open("/generate", {**payload, "stream": True}) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data:").strip()
                if not data or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                index, meta = chunk.get("index", 0), chunk["meta_info"]
                before, now = samples.get(index), wire.completion(chunk["text"], meta)
                samples[index] = now
                if event := wire.event(index, before, now, meta.get("finish_reason") is not None):
                    on_event(event)
        return tuple(samples[index] for index in sorted(samples))

    def _prefill(self, text: str) -> int:
        return int(
            self._post("/generate", wire.prefill_payload(text))["meta_info"]["prompt_tokens"]
        )

    def _prefill_if_possible(self, text: str) -> int:
        try:
            return self._prefill(text)
        except BackendError:
            return 0

    def _score(self, text: str, choices: list[str], unconditional: bool) -> ChoiceScores:
        """Score by prefill, looking one token back for prompts whose last token heals."""
        meta = self._post("/generate", wire.prefill_payload(text))["meta_info"]
        start = max(meta["prompt_tokens"] - 2, 0)
        outputs = self._post("/generate", wire.scoring_payload([text + c for c in choices], start))
        rows = [wire.scored_tokens(text, output) for output in outputs]
        alone = self._score_alone(rows) if unconditional else [None] * len(rows)
        scores = tuple(map(ChoiceScore, choices, rows, alone))
        return ChoiceScores(scores, meta["prompt_tokens"], meta.get("cached_tokens", 0))

    def _score_alone(
        self, rows: Sequence[tuple[TokenLogprob, ...]]
    ) -> list[tuple[TokenLogprob, ...]]:
        payload = wire.scoring_payload(None, 0)
        payload["input_ids"] = [[token.token_id for token in row] for row in rows]
        return [
            wire.tokens(o["meta_info"]["input_token_logprobs"])
            for o in self._post("/generate", payload)
        ]

    def _get(self, path: str) -> Any:
        with self._open(path) as response:
            return json.load(response)

    def _post(self, path: str, payload: Mapping[str, Any]) -> Any:
        with self._open(path, payload) as response:
            return json.load(response)

    @contextmanager
    def _open(
        self, path: str, payload: Mapping[str, Any] | None = None, method: str | None = None
    ) -> Iterator[Any]:
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(
            self.base_url + path, body, headers=self._headers, method=method
        )
        try:
            with urllib.request.urlopen(request, context=self._ssl) as response:
                yield response
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")[:500]
            raise BackendError(f"{request.full_url} answered {error.code}: {said}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise BackendError(f"no usable answer from {request.full_url}: {error}") from error


def _ssl_context(verify: str | bool | None) -> ssl.SSLContext | None:
    if verify is None or verify is True:
        return None
    if verify is False:
        return ssl._create_unverified_context()
    return ssl.create_default_context(cafile=verify)
