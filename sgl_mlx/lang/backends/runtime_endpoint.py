"""`RuntimeEndpoint`: a backend for servers with SGLang's HTTP protocol."""

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
from typing import Any

from sgl_mlx.bounds import filled_text, shown
from sgl_mlx.core import (
    ChoiceScore,
    ChoiceScores,
    Completion,
    Prompt,
    SamplingParams,
    StreamEvent,
    Text,
    TokenLogprob,
)
from sgl_mlx.errors import BackendError, TokenizerError
from sgl_mlx.lang.backends import context_wire
from sgl_mlx.lang.pictures import around, has_pictures
from sgl_mlx.lang.templates.chat_template import (
    ChatTemplate,
    get_chat_template,
    get_chat_template_by_model_path,
)
from sgl_mlx.protocol import sglang as wire
from sgl_mlx.protocol.events import GrowingText, checked, json_events

_THREADS = 64
"""The most requests at a time; each has a thread that waits for its answer."""
_SILENT = SamplingParams(max_new_tokens=0)


class RuntimeEndpoint:
    """A `Backend` that sends requests to a server with SGLang's HTTP protocol.

    This project's own server also has `/v1/contexts`. With such a server, prompts are sent as
    parts, `select` takes one round trip, and pictures, grammars, gaps and parallel branches work
    anywhere in a prompt.

    Args:
        base_url: the server's address, such as `http://localhost:30000`; without a scheme, http.
        api_key: a key to send as bearer token.
        verify: the path of a file of trusted certificates, or False to trust any certificate.
        chat_template_name: a name for `get_chat_template`. None takes the model's own template if
            the server renders chats, as this project's server does; otherwise the template is
            chosen by the model's path.

    Raises:
        BackendError: `base_url` is no text.
        ProgramError: no chat template is called `chat_template_name`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | bool | None = None,
        chat_template_name: str | None = None,
    ) -> None:
        address = filled_text("base_url", base_url, BackendError)
        self.base_url = (address if "://" in address else f"http://{address}").rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._ssl = _ssl_context(verify)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sgl-endpoint")
        named = chat_template_name
        self._template = None if named is None else get_chat_template(named)
        self._rendered: dict[str, str] = {}

    @cached_property
    def model_info(self) -> dict[str, Any]:
        """The server's information about its model; raises `BackendError` if there is no answer."""
        info: dict[str, Any] = self._get("/get_model_info")
        return info

    @property
    def model_name(self) -> str:
        return str(self.model_info["model_path"])

    def get_model_name(self) -> str:
        return self.model_name

    @property
    def _has_contexts(self) -> bool:
        return bool(self._contexts)

    @cached_property
    def _contexts(self) -> str:
        """How `/v1/contexts` is reached: "directly", "carried" by a router, or "" (not at all)."""
        try:
            if self._get(context_wire.CONTEXTS).get("object") == "list":
                return "directly"
        except BackendError:  # an SGLang server, a router, or none: the request will tell
            pass
        told = self._is_router and self.model_info.get("carries_requests")
        return "carried" if told else ""

    @property
    def supports_parallel(self) -> bool:
        """True if the server joins parallel branches without computing them again."""
        return self._has_contexts and bool(self.model_info.get("supports_parallel"))

    @property
    def chat_template(self) -> ChatTemplate:
        """The template set by name or assignment; otherwise the usual one for the model's path."""
        return self._template or get_chat_template_by_model_path(self.model_name)

    @chat_template.setter
    def chat_template(self, template: ChatTemplate) -> None:
        self._template = template

    @cached_property
    def _sends_increments(self) -> bool:
        """True if the server reports that each stream event holds only new text."""
        info = self._info
        return bool(info.get("stream_output") or info.get("incremental_streaming_output"))

    @property
    def _is_router(self) -> bool:
        return bool(self._info.get("router_manager"))

    @cached_property
    def _info(self) -> dict[str, Any]:
        """The server's information about itself; empty if it tells none."""
        try:
            return self.get_server_info()
        except BackendError:
            return {}

    def get_chat_template(self) -> ChatTemplate | None:
        """Return `chat_template`; None if none is set and the server renders chats itself."""
        return None if self._template is None and self._has_contexts else self.chat_template

    # -- Backend ------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """Return the text that the server's chat template makes of a conversation.

        Results are kept, so that each conversation is sent only once.

        Raises:
            TokenizerError: the server does not render chats, or refuses this conversation.
        """
        if not self._has_contexts:
            raise TokenizerError("this server tells no chat template; set endpoint.chat_template")
        body = json.dumps(
            {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        )
        if body not in self._rendered:
            try:
                self._rendered[body] = self._post(context_wire.RENDER, json.loads(body))["prompt"]
            except BackendError as error:
                raise TokenizerError(str(error)) from error
        return self._rendered[body]

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        path, payload = self._request(prompt, params)
        if on_event is None:
            return self._pool.submit(self._generate, path, payload)
        return self._pool.submit(self._generate_stream, path, payload, on_event)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        if self._has_contexts:
            body = context_wire.scoring(prompt, choices, unconditional)
            return self._pool.submit(self._score_in_context, body)
        return self._pool.submit(self._score, wire.flat_text(prompt), list(choices), unconditional)

    def prefill(self, prompt: Prompt) -> Future[int]:
        return self._pool.submit(self._prefill, *self._request(prompt, _SILENT))

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """Prefill the prompt, since SGLang's servers have no prefetch.

        The future gives 0 on an error.
        """
        return self._pool.submit(self._prefill_if_possible, *self._request(prompt, _SILENT))

    def cache_prefix(self, prefix_str: str) -> None:
        """Prefill a text with which programs will begin; waits until the server has done it."""
        self._prefill(*self._request((Text(prefix_str),), _SILENT))

    def flush_cache(self) -> bool:
        with self._open("/flush_cache", method="POST") as response:
            return bool(response.status == 200)

    def get_server_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._get("/get_server_info")
        return info

    def shutdown(self) -> None:
        """Cancel requests that are not sent yet; the server keeps running."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- requests -----------------------------------------------------------------------------

    def _request(self, prompt: Prompt, params: SamplingParams) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of the request that continues a prompt."""
        if self._has_contexts:
            return context_wire.GENERATE, context_wire.generation(prompt, params)
        if self._is_router:
            wire.refuse_what_routers_drop(params)
        if params is _SILENT:
            return "/generate", wire.prefill_payload(wire.flat_text(prompt))
        mark = around(self.chat_template.image_token)[1] if has_pictures(prompt) else ""
        return "/generate", wire.payload(prompt, params, mark)

    def _generate(self, path: str, payload: dict[str, Any]) -> tuple[Completion, ...]:
        answer = self._post(path, payload)
        outputs = answer if isinstance(answer, list) else answer.get("samples", [answer])
        return tuple(_completion(output) for output in outputs)

    def _generate_stream(
        self, path: str, payload: dict[str, Any], on_event: Callable[[StreamEvent], None]
    ) -> tuple[Completion, ...]:
        samples: dict[int, _Sample] = {}
        with self._open(path, {**payload, "stream": True}) as response:
            for chunk in json_events(response):
                if "context" in chunk:  # the last event of a context, after all samples
                    continue
                index = chunk.get("index") or 0
                sample = samples.setdefault(index, _Sample(index, self._sends_increments))
                if event := sample.add(*_read(chunk)):
                    on_event(event)
        for sample in samples.values():
            if event := sample.finish():
                on_event(event)
        if not samples:
            raise BackendError("the server's answer ended early, before it began")
        return tuple(sample.completion for _, sample in sorted(samples.items()))

    def _prefill(self, path: str, payload: dict[str, Any]) -> int:
        return self._generate(path, payload)[0].prompt_tokens

    def _prefill_if_possible(self, path: str, payload: dict[str, Any]) -> int:
        try:
            return self._prefill(path, payload)
        except BackendError:
            return 0

    def _score_in_context(self, payload: dict[str, Any]) -> ChoiceScores:
        return context_wire.scores(self._post(context_wire.SCORE, payload))

    def _score(self, text: str, choices: list[str], unconditional: bool) -> ChoiceScores:
        """Score choices from the logprobs of prompt + choice.

        The logprobs begin at the prompt's second to last token, because the prompt's last token may
        merge with the choice.
        """
        meta = self._post("/generate", wire.prefill_payload(text))["meta_info"]
        start = max(meta["prompt_tokens"] - 2, 0)
        outputs = self._scored([text + choice for choice in choices], start)
        count = meta["prompt_tokens"]
        rows = [wire.scored_tokens(c, count, o) for c, o in zip(choices, outputs, strict=True)]
        alone = self._score_alone(rows) if unconditional else [None] * len(rows)
        scores = tuple(map(ChoiceScore, choices, rows, alone))
        return ChoiceScores(scores, meta["prompt_tokens"], meta.get("cached_tokens", 0))

    def _scored(self, texts: list[str], start: int) -> list[Any]:
        """Return the server's outputs for texts to score, sent in one request.

        If the server refuses lists of texts, each text is sent in a request of its own.
        """
        try:
            return list(self._post("/generate", wire.scoring_payload(texts, start)))
        except BackendError as error:
            if "answered 422" not in str(error):  # as routers of SGLang do
                raise
        return [self._post("/generate", wire.scoring_payload(text, start)) for text in texts]

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
            return checked(json.load(response))

    def _post(self, path: str, payload: Mapping[str, Any]) -> Any:
        with self._open(path, payload) as response:
            return checked(json.load(response))

    @contextmanager
    def _open(
        self, path: str, payload: Mapping[str, Any] | None = None, method: str | None = None
    ) -> Iterator[Any]:
        if payload is not None and path in context_wire.CARRIED and self._contexts == "carried":
            model = self.model_info["served_model_name"]
            path, payload = context_wire.COMPLETIONS, context_wire.carried(path, payload, model)
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
        except BackendError as error:
            raise BackendError(f"{request.full_url}: {error}") from None
        except (OSError, HTTPException, ValueError) as e:
            raise BackendError(f"no usable answer from {shown(request.full_url)}: {e}") from e


def _read(output: Mapping[str, Any]) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """Return the text, `meta_info` and token ids of a server's output.

    Raises:
        BackendError: the output has no text, or the server aborted the request with an error.
    """
    text, meta = output.get("text"), output.get("meta_info") or {}
    wire.checked_meta(meta)
    if not isinstance(text, str):
        raise BackendError(f"the server answered without text: {str(dict(output))[:200]}")
    return text, meta, tuple(output.get("output_ids") or ())


class _Sample:
    """One sample of a streamed answer, assembled from its chunks."""

    def __init__(self, index: int, increments: bool) -> None:
        self._index = index
        self._growing = GrowingText(increments)
        self._ended = self._told = False
        self._last: Completion | None = None
        self._shown: Completion | None = None

    @property
    def completion(self) -> Completion:
        assert self._last is not None, "a sample begins with its first chunk"
        return self._last

    def add(
        self, text: str, meta: Mapping[str, Any], token_ids: tuple[int, ...]
    ) -> StreamEvent | None:
        """Add a chunk, and return the event to show for it.

        Returns None if the chunk brings no new text and does not end the sample.
        """
        piece = self._growing.add(text, wire.stopped_at(meta))
        self._told = meta.get("finish_reason") is not None
        self._ended = meta.get("finish_reason", "not told") is not None
        if self._told:
            piece += self._growing.finish()
        self._last = wire.completion(self._growing.text, meta, token_ids)
        event = wire.event(self._index, piece, self._shown, self._last, self._told)
        self._shown = self._last if event is not None else self._shown
        return event

    def finish(self) -> StreamEvent | None:
        """Return the event for text that `add` held back; None if there is none.

        Raises:
            BackendError: the stream ended before the sample did.
        """
        if not self._ended:
            raise BackendError(
                f"the server's answer ended early, after {self._growing.text[-60:]!r}"
            )
        rest = "" if self._told else self._growing.finish()
        return wire.event(self._index, rest, self.completion, self.completion, ended=False)


def _completion(output: Mapping[str, Any]) -> Completion:
    return wire.completion(*_read(output))


def _ssl_context(verify: str | bool | None) -> ssl.SSLContext | None:
    if verify is None or verify is True:
        return None
    if verify is False:
        return ssl._create_unverified_context()
    return ssl.create_default_context(cafile=verify)
