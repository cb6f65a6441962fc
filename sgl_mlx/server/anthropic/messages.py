"""Anthropic's routes `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.core import Prompt, SamplingParams, prompt_text
from sgl_mlx.server.answer import answer
from sgl_mlx.server.anthropic import blocks
from sgl_mlx.server.anthropic.conversion import choice_of, messages_of, tools_of
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError, anthropic_body, bad_value
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.refused import Refused
from sgl_mlx.server.service import Service, in_thread, new_id
from sgl_mlx.server.sse import frame
from sgl_mlx.server.turn import Turn, Wanted
from sgl_mlx.server.visit import CacheKeys, Visit


class OutputFormat(msgspec.Struct):
    """A JSON schema for the answer; `type` must be "json_schema"."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    """A request's demands on the answer: its format, and the effort of reasoning."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(CacheKeys, kw_only=True):
    """The body of `/v1/messages/count_tokens`; unknown fields are ignored."""

    messages: list[Any]
    model: str | None = None
    system: str | list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of `/v1/messages`; unknown fields are ignored."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_format: OutputFormat | None = None
    mcp_servers: Annotated[Any, Refused("run their tools yourself and give them in tools")] = None


def routes(service: Service) -> list[Route]:
    """Return the routes `/v1/messages` and `/v1/messages/count_tokens`."""

    async def messages(request: Request) -> Response:
        fields = await service.read(request, MessagesRequest)
        visit = Visit(service, request, fields)
        call = _Call(visit, fields)
        return await answer(visit, call, fields.stream, _failure)

    async def count_tokens(request: Request) -> Response:
        fields = await service.read(request, CountRequest)
        service.model(fields.model)
        return json_response({"input_tokens": await in_thread(_count, service, fields)})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


class _Call:
    """One request to `/v1/messages`, answered as one JSON document or as a stream of events."""

    def __init__(self, visit: Visit, fields: MessagesRequest) -> None:
        service = self._service = visit.service
        self._visit = visit
        self._fields = fields
        self._model = service.model(fields.model)
        self._id = new_id("msg_")
        self._wanted = _wanted(fields, self._sampling())

    async def whole(self) -> dict[str, Any]:
        turn = await self._turn()
        [[sample]] = await self._visit.whole([self._ask(turn)])
        reader = turn.reader(self._visit.answers)
        pieces = reader.add(sample)
        return {
            **self._head(),
            "content": blocks.content(pieces),
            **blocks.stop(sample.finish_reason, reader.calls),
            "usage": blocks.usage(sample, len(sample.token_ids)),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        turn = await self._turn()
        reader, shown, made = turn.reader(self._visit.answers), blocks.BlockEvents(), 0
        begun = False
        async with aclosing(self._visit.stream([self._ask(turn)])) as events:
            async for _, event in events:
                if not begun:
                    begun = True
                    yield self._start(blocks.usage(event, 0))
                made += len(event.token_ids)
                reason = event.finish_reason
                for piece in shown.add(reader.add(event)):
                    yield piece
                if reason is not None:
                    for piece in shown.close():
                        yield piece
                    yield blocks.named(
                        "message_delta",
                        delta=blocks.stop(reason, reader.calls),
                        usage=blocks.usage(event, made),
                    )
        yield blocks.named("message_stop")

    def _start(self, usage: dict[str, int]) -> bytes:
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        begin = blocks.named("message_start", message={**message, "usage": usage})
        return begin + blocks.named("ping")

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    async def _turn(self) -> Turn:
        tokenizer, recall = self._service.engine.tokenizer, self._visit.answers.find
        return await in_thread(self._wanted.turn, tokenizer, recall)

    def _ask(self, turn: Turn) -> Ask:
        return Ask(turn.prompt, turn.params, self._id)

    def _sampling(self) -> SamplingParams:
        fields = self._fields
        if fields.max_tokens < 1:
            raise bad_value(f"max_tokens must be at least 1, got {fields.max_tokens}", "max_tokens")
        return (
            SamplingParams()
            .override(
                max_new_tokens=fields.max_tokens,
                temperature=fields.temperature,
                top_p=fields.top_p,
                top_k=fields.top_k,
                stop=fields.stop_sequences,
                json_schema=_schema(self._format()),
            )
            .validate(self._service.limits)
        )

    def _format(self) -> OutputFormat | None:
        """Return the format of the answer; beta versions of the protocol have it at the top."""
        config = self._fields.output_config
        return (config.format if config else None) or self._fields.output_format


def _wanted(fields: CountRequest, params: SamplingParams) -> Wanted:
    variables: dict[str, Any] = {}
    match fields.thinking:
        case {"type": "enabled" | "adaptive"}:
            variables["enable_thinking"] = True
        case {"type": "disabled"}:
            variables["enable_thinking"] = False
    if fields.output_config and fields.output_config.effort:
        variables["reasoning_effort"] = fields.output_config.effort
    return Wanted(
        messages_of(fields.system, fields.messages),
        params,
        tools_of(fields.tools or ()),
        choice_of(fields.tool_choice),
        variables=variables,
    )


def _count(service: Service, fields: CountRequest) -> int:
    """Count the tokens of the rendered prompt; pictures are not counted."""
    tokenizer = service.engine.tokenizer
    turn = _wanted(fields, SamplingParams()).turn(tokenizer)
    return len(tokenizer.encode(prompt_text(cast(Prompt, turn.prompt))))


def _schema(form: OutputFormat | None) -> dict[str, Any] | None:
    match form:
        case None:
            return None
        case OutputFormat(type="json_schema", schema=dict() as schema):
            return schema
    raise bad_value(
        "output_config.format must have the type json_schema and a schema", "output_config"
    )


def _failure(error: HttpError) -> bytes:
    return frame(anthropic_body(error), "error")
