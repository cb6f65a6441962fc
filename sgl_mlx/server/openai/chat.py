"""`/v1/chat/completions`: a conversation, continued by the model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.core import Completion, FinishReason, Logprobs, Prompt, SamplingParams, StreamEvent
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.messages import Conversation
from sgl_mlx.server.openai.answers import Chunks, Usage, asks, finish, stream_response
from sgl_mlx.server.openai.fields import Sampling, sampling_params
from sgl_mlx.server.openai.logprobs import chat_logprobs, without_end
from sgl_mlx.server.service import Service, in_thread
from sgl_mlx.server.sse import answer_while_connected


class ChatRequest(Sampling, kw_only=True):
    """A request's body."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    input_ids: list[int] | None = None
    tools: list[dict[str, Any]] | None = None


def routes(service: Service) -> list[Route]:
    """Return the routes of this file."""

    async def chat(request: Request) -> Response:
        fields = await service.read(request, ChatRequest)
        call = _Call(service, fields)
        if fields.stream:
            return await stream_response(request, service, call.stream())
        return json_response(await answer_while_connected(request, call.whole()))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


class _Call:
    """One request: its prompt, and its answer whole or in chunks."""

    def __init__(self, service: Service, fields: ChatRequest) -> None:
        self._service = service
        self._fields = fields
        self._tokenizer = service.engine.tokenizer
        if fields.tools:
            raise bad_value("tools are not supported yet", "tools")
        self._params = self._sampling()
        self._model = service.model(fields.model)
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        rid, asked = await self._asks()
        [samples] = await self._service.flights.whole(asked)
        usage = Usage()
        for sample in samples:
            usage.add(0, sample)
        choices = [self._choice(i, sample) for i, sample in enumerate(samples)]
        return {
            **self._head(rid, "chat.completion"),
            "choices": choices,
            "usage": usage.to_dict(),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        rid, asked = await self._asks()
        chunks = Chunks(self._fields, self._head(rid, "chat.completion.chunk"))
        begun: set[int] = set()
        async with aclosing(self._service.flights.stream(asked)) as events:
            async for _, event in events:
                chunks.usage.add(0, event)
                if event.sample not in begun:
                    begun.add(event.sample)
                    yield chunks.frame(_delta(event.sample, {"role": "assistant", "content": ""}))
                for choice in self._pieces(event):
                    yield chunks.frame(choice)
        yield chunks.last()

    def _sampling(self) -> SamplingParams:
        fields = self._fields
        tokens = fields.max_completion_tokens
        tokens = fields.max_tokens if tokens is None else tokens
        if tokens is None:
            tokens = self._service.context_length
        wanted = {}
        if fields.logprobs:
            wanted = {"return_logprob": True, "top_logprobs_num": fields.top_logprobs or 0}
        elif fields.top_logprobs:
            raise bad_value("top_logprobs needs logprobs: true", "top_logprobs")
        return sampling_params(fields, self._service.limits, max_new_tokens=tokens, **wanted)

    async def _asks(self) -> tuple[str, list[Ask]]:
        ids = self._fields.input_ids
        prompt = ids if ids is not None else await in_thread(self._prompt)
        return asks(self._fields, [prompt], self._params, "chatcmpl-")

    def _prompt(self) -> Prompt:
        fields = self._fields
        variables = dict(fields.chat_template_kwargs or {})
        if fields.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", fields.reasoning_effort)
        if fields.add_generation_prompt is not None:
            variables.setdefault("add_generation_prompt", fields.add_generation_prompt)
        continues = bool(fields.continue_final_message)
        return Conversation(fields.messages).prompt(self._tokenizer, continues, **variables)

    def _head(self, rid: str, kind: str) -> dict[str, Any]:
        return {"id": rid, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, index: int, sample: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": self._scored(sample.logprobs, sample.finish_reason),
            **finish(sample.finish_reason),
        }

    def _pieces(self, event: StreamEvent) -> Sequence[dict[str, Any]]:
        """Return what an event adds to its choice: text, then the end."""
        made = []
        scored = self._scored(event.logprobs, event.finish_reason)
        if event.text or (scored and scored["content"]):
            made.append(_delta(event.sample, {"content": event.text}, scored))
        if event.finish_reason is not None:
            made.append({**_delta(event.sample, {}), **finish(event.finish_reason)})
        return made

    def _scored(self, found: Logprobs | None, reason: FinishReason | None) -> dict[str, Any] | None:
        if found is None:
            return None
        tokens, tops = without_end(found.output, found.output_top, reason)
        return {"content": chat_logprobs(tokens, tops, self._tokenizer), "refusal": None}


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
