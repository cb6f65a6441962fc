"""`/v1/completions`: OpenAI's completions of prompts given as text or token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.core import Completion, Logprobs, SamplingParams, Text
from sgl_mlx.server.answer import answer
from sgl_mlx.server.carried import CarriedRequest, Carrier
from sgl_mlx.server.openai.answers import Chunks, Usage, asks, failure, finish
from sgl_mlx.server.openai.fields import NO_LIMIT, Sampling, sampling_params
from sgl_mlx.server.openai.logprobs import CompletionLogprobs
from sgl_mlx.server.openai.prompts import listed_prompts
from sgl_mlx.server.refused import Refused
from sgl_mlx.server.service import Service
from sgl_mlx.server.visit import Visit

_TOKENS = 16
"""OpenAI's default of `max_tokens`."""


class CompletionRequest(Sampling, kw_only=True):
    """The body of `/v1/completions`; unknown fields are ignored."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | bool | None = None
    suffix: Annotated[Any, Refused("put all text into the prompt")] = None
    best_of: Annotated[Any, Refused("give n", (1,))] = None
    carried: CarriedRequest | None = None


def routes(service: Service, carrier: Carrier) -> list[Route]:
    """Return the route `/v1/completions`; `carrier` answers carried requests."""

    async def completions(request: Request) -> Response:
        fields = await service.read(request, CompletionRequest)
        if fields.carried is not None:
            service.model(fields.model)
            return carrier.answer(request, fields.carried)
        visit = Visit(service, request, fields)
        call = _Call(visit, fields)
        return await answer(visit, call, fields.stream, failure)

    return [Route("/v1/completions", completions, methods=["POST"])]


class _Call:
    """One request to `/v1/completions`, answered as one JSON document or in chunks."""

    def __init__(self, visit: Visit, fields: CompletionRequest) -> None:
        service = self._service = visit.service
        self._visit = visit
        self._fields = fields
        self._tokenizer = service.engine.tokenizer
        self._prompts = listed_prompts("prompt", fields.prompt)
        self._params = self._sampling()
        given = [(Text(p),) if isinstance(p, str) else p for p in self._prompts]
        rid, self._asks = asks(fields, given, self._params, "cmpl-")
        self._head = {
            "id": rid,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model(fields.model),
        }

    async def whole(self) -> dict[str, Any]:
        answers = await self._visit.whole(self._asks)
        usage = Usage()
        choices = []
        for i, samples in enumerate(answers):
            for j, sample in enumerate(samples):
                usage.add(i, sample)
                choices.append(self._choice(i, j, sample))
        return {**self._head, "choices": choices, "usage": usage.to_dict()}

    async def stream(self) -> AsyncIterator[bytes]:
        chunks = Chunks(self._fields, self._head)
        scored: dict[tuple[int, int], CompletionLogprobs] = {}
        async with aclosing(self._visit.stream(self._asks)) as events:
            async for i, event in events:
                chunks.usage.add(i, event)
                key = (i, event.sample)
                begins = key not in scored
                lines = scored.setdefault(key, self._logprobs())
                yield chunks.frame(
                    {
                        "index": self._index(*key),
                        "text": (self._echo(i) if begins else "") + event.text,
                        "logprobs": self._scored(lines, event.logprobs),
                        **finish(event.finish_reason),
                    }
                )
        yield chunks.last()

    def _sampling(self) -> SamplingParams:
        fields, wanted = self._fields, {}
        if self._alternatives is not None:
            wanted = {
                "return_logprob": True,
                "top_logprobs_num": self._alternatives,
                "logprob_start_len": 0 if fields.echo else -1,
            }
        tokens = _TOKENS if fields.max_tokens is None else fields.max_tokens
        if tokens == NO_LIMIT:
            tokens = self._service.context_length
        return sampling_params(fields, self._service.limits, max_new_tokens=tokens, **wanted)

    @property
    def _alternatives(self) -> int | None:
        given = self._fields.logprobs
        return None if given is None or given is False else int(given)

    def _logprobs(self) -> CompletionLogprobs:
        return CompletionLogprobs(self._tokenizer, self._alternatives or 0)

    def _choice(self, i: int, j: int, sample: Completion) -> dict[str, Any]:
        return {
            "index": self._index(i, j),
            "text": self._echo(i) + sample.text,
            "logprobs": self._scored(self._logprobs(), sample.logprobs),
            **finish(sample.finish_reason),
        }

    def _index(self, prompt: int, sample: int) -> int:
        return prompt * self._params.n + sample

    def _echo(self, index: int) -> str:
        """Return the text of prompt `index` if the request sets `echo`; else an empty text."""
        if not self._fields.echo:
            return ""
        prompt = self._prompts[index]
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.decode(prompt, skip_special=False)

    def _scored(self, lines: CompletionLogprobs, found: Logprobs | None) -> dict[str, Any] | None:
        if found is None:
            return None
        first = [()] * (len(found.input) - len(found.input_top))  # the first token is not predicted
        tops = (*first, *found.input_top, *found.output_top)
        return lines.add((*found.input, *found.output), tops)
