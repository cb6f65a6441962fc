"""Asynchronous client of a server of OpenAI's chat protocol: streams answers and times them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from sgl_mlx.benchmarks.peers.lines import Lines
from sgl_mlx.benchmarks.peers.system import PeerError

Message = Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """One streamed answer.

    Attributes:
        first: seconds from the request to the first text.
        gaps: seconds between one piece of text and the next.
        prompt_tokens, output_tokens, cached_tokens: counts by the server.
    """

    text: str
    first: float
    gaps: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass
class _Reading:
    """The text, times and counts that a stream has sent so far."""

    started: float = field(default_factory=time.perf_counter)
    pieces: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Any]) -> None:
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if text := (delta.get("content") or delta.get("reasoning_content")):
                self.pieces.append(text)
                self.times.append(time.perf_counter())
        self.usage = chunk.get("usage") or self.usage
        self.timings = chunk.get("timings") or self.timings

    def reply(self) -> Reply:
        """Return the answer; raises KeyError, TypeError or ValueError if it has no counts."""
        times = self.times or [time.perf_counter()]
        details = self.usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens", self.timings.get("cache_n", 0))
        return Reply(
            "".join(self.pieces),
            times[0] - self.started,
            tuple(b - a for a, b in itertools.pairwise(times)),
            int(self.usage["prompt_tokens"]),
            int(self.usage["completion_tokens"]),
            int(cached or 0),
        )


class ChatClient:
    """A client of one server, used as an asynchronous context.

    Args:
        name: the server's name in errors.
        address: the server's address, without `/v1`.
        model: model name to send; None sends none.
        key: API key; None sends none.
        timeout: seconds without any data after which a request fails.
    """

    def __init__(
        self, name: str, address: str, model: str | None, key: str | None, timeout: float
    ) -> None:
        self._name = name
        self._model = {} if model is None else {"model": model}
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(
            base_url=address,
            headers=headers,
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(
        self, messages: Sequence[Message], tokens: int, bias: Mapping[int, float]
    ) -> Reply:
        """Send a conversation and read the answer to its end.

        Args:
            tokens: number of tokens to answer.
            bias: values to add to logits, by token id.

        Raises:
            PeerError: the server refuses, fails, breaks off, or counts no tokens.
        """
        reading = _Reading()
        body = {
            **self._model,
            "messages": list(messages),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"logit_bias": {str(t): value for t, value in bias.items()}} if bias else {}),
        }
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                await self._check(answer)
                async for chunk in self._chunks(answer):
                    reading.add(chunk)
            return reading.reply()
        except httpx.HTTPError as error:
            raise PeerError(f"{self._name}: {type(error).__name__}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PeerError(f"{self._name} sent an answer without counts of tokens") from error

    async def _check(self, answer: httpx.Response) -> None:
        if answer.is_error:
            said = (await answer.aread())[:300].decode("utf-8", "replace")
            raise PeerError(f"{self._name} refused with status {answer.status_code}: {said}")

    async def _chunks(self, answer: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
        lines = Lines()
        async for piece in answer.aiter_bytes():
            for line in lines.feed(piece):
                name, _, data = line.partition(":")
                if name != "data" or data.strip() == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise PeerError(f"{self._name} answers with an error: {chunk['error']}")
                yield chunk
