"""`/v1/responses`: OpenAI's Responses API; responses are not stored between requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.core import Completion, FinishReason, SamplingParams, StreamEvent
from sgl_mlx.json_schema import closed
from sgl_mlx.server.answer import answer
from sgl_mlx.server.errors import HttpError, bad_value
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.openai.chat import choice_of
from sgl_mlx.server.openai.fields import in_words
from sgl_mlx.server.openai.response_events import Items
from sgl_mlx.server.openai.responses_input import Toolbox, messages_of
from sgl_mlx.server.refused import Refused
from sgl_mlx.server.service import Service, in_thread, new_id
from sgl_mlx.server.turn import Turn, Wanted
from sgl_mlx.server.visit import CacheKeys, Visit

_NOT_STORED = "nothing is stored on the server; send the whole input"


class TextFormat(msgspec.Struct):
    """The format that the text must have: text, any JSON object, or JSON of a schema."""

    type: str = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    """A request's demands on the answer's text."""

    format: TextFormat | None = None


class Reasoning(msgspec.Struct):
    """A request's demands on reasoning; `effort` is passed to the chat template."""

    effort: str | None = None


class ResponsesRequest(CacheKeys, kw_only=True):
    """The body of `/v1/responses`; unknown fields are ignored."""

    input: str | list[Any]
    model: str | None = None
    instructions: str | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: Annotated[Any, Refused(_NOT_STORED)] = None
    conversation: Annotated[Any, Refused(_NOT_STORED)] = None
    background: Annotated[Any, Refused("wait for the answer, or give stream")] = None


def routes(service: Service) -> list[Route]:
    """Return the route `/v1/responses`."""

    async def responses(request: Request) -> Response:
        fields = await service.read(request, ResponsesRequest)
        visit = Visit(service, request, fields)
        call = _Call(visit, fields)
        return await answer(visit, call, fields.stream, call.failure)

    return [Route("/v1/responses", responses, methods=["POST"])]


class _Call:
    """One request to `/v1/responses`, answered as one JSON document or as a stream of events."""

    def __init__(self, visit: Visit, fields: ResponsesRequest) -> None:
        service = self._service = visit.service
        self._visit = visit
        self._fields = fields
        self._model = service.model(fields.model)
        self._id = new_id("resp_")
        self._created = int(time.time())
        self._toolbox = Toolbox(fields.tools or ())
        self._items = Items(self._toolbox)
        self._wanted = self._want()

    async def whole(self) -> dict[str, Any]:
        turn = await self._turn()
        [[sample]] = await self._visit.whole([self._ask(turn)])
        pieces = turn.reader(self._visit.answers).add(sample)
        for _ in [*self._items.add(pieces), *self._items.close()]:
            pass  # the items are built as their events are made
        return self._ended(sample.finish_reason, _usage(sample, len(sample.token_ids)))

    async def stream(self) -> AsyncIterator[bytes]:
        turn = await self._turn()
        items, reader, made = self._items, turn.reader(self._visit.answers), 0
        begun = False
        async with aclosing(self._visit.stream([self._ask(turn)])) as events:
            async for _, event in events:
                if not begun:
                    begun = True
                    for name in ("response.created", "response.in_progress"):
                        yield items.event(name, response=self._response("in_progress"))
                made += len(event.token_ids)
                reason = event.finish_reason
                for piece in items.add(reader.add(event)):
                    yield piece
                if reason is not None:
                    for piece in items.close():
                        yield piece
                    ended = self._ended(reason, _usage(event, made))
                    yield items.event(f"response.{ended['status']}", response=ended)

    def failure(self, error: HttpError) -> bytes:
        """Encode an error that occurs after the headers were sent, as `response.failed`."""
        told = {"code": error.code or "server_error", "message": error.message}
        response = {**self._response("failed"), "error": told}
        return self._items.event("response.failed", response=response)

    def _want(self) -> Wanted:
        fields = self._fields
        effort = fields.reasoning.effort if fields.reasoning else None
        return Wanted(
            messages_of(fields.input, fields.instructions, self._toolbox),
            self._sampling(),
            self._toolbox.tools,
            choice_of(fields.tool_choice, fields.parallel_tool_calls),
            variables={"reasoning_effort": effort} if effort else {},
            formats=self._toolbox.formats,
        )

    def _sampling(self) -> SamplingParams:
        fields = self._fields
        tokens = fields.max_output_tokens
        form = fields.text.format if fields.text else None
        with in_words({"max_new_tokens": "max_output_tokens"}):
            return (
                SamplingParams()
                .override(
                    max_new_tokens=self._service.context_length if tokens is None else tokens,
                    temperature=fields.temperature,
                    top_p=fields.top_p,
                    json_schema=_schema(form),
                )
                .validate(self._service.limits)
            )

    async def _turn(self) -> Turn:
        tokenizer, recall = self._service.engine.tokenizer, self._visit.answers.find
        return await in_thread(self._wanted.turn, tokenizer, recall)

    def _ask(self, turn: Turn) -> Ask:
        return Ask(turn.prompt, turn.params, self._id)

    def _ended(self, reason: FinishReason, usage: dict[str, Any]) -> dict[str, Any]:
        usage["output_tokens_details"] = {"reasoning_tokens": self._thought_tokens()}
        if reason.type != "length":
            return {**self._response("completed"), "usage": usage}
        details = {"reason": "max_output_tokens"}
        return {**self._response("incomplete"), "incomplete_details": details, "usage": usage}

    def _thought_tokens(self) -> int:
        thoughts = (item["content"] for item in self._items.output if item["type"] == "reasoning")
        encode = self._service.engine.tokenizer.encode
        return sum(len(encode(part["text"], False)) for parts in thoughts for part in parts)

    def _response(self, status: str) -> dict[str, Any]:
        fields = self._fields
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": fields.metadata or {},
            "model": self._model,
            "output": list(self._items.output),
            "parallel_tool_calls": fields.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": fields.temperature,
            "tool_choice": fields.tool_choice or "auto",
            "tools": fields.tools or [],
            "top_p": fields.top_p,
            "usage": None,
        }


def _usage(answer: Completion | StreamEvent, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": output_tokens,
        "total_tokens": answer.prompt_tokens + output_tokens,
    }


def _schema(form: TextFormat | None) -> dict[str, Any] | None:
    match form:
        case None | TextFormat(type="text"):
            return None
        case TextFormat(type="json_object"):
            return {"type": "object"}
        case TextFormat(type="json_schema", schema=dict() as schema):
            made: dict[str, Any] = closed(schema) if form.strict else schema
            return made
    raise bad_value(
        "text.format must have the type text, json_object or json_schema with a schema", "text"
    )
