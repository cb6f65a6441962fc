"""`/v1/chat/completions`: OpenAI's chat completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.bounds import shown
from sgl_mlx.core import Completion, FinishReason, Logprobs, SamplingParams, StreamEvent
from sgl_mlx.server.answer import answer
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.memory import AnswerReader
from sgl_mlx.server.openai.answers import Chunks, Usage, asks, failure, finish
from sgl_mlx.server.openai.fields import NO_LIMIT, Sampling, sampling_params
from sgl_mlx.server.openai.logprobs import chat_logprobs, without_end
from sgl_mlx.server.output import Form, Piece
from sgl_mlx.server.refused import Refused
from sgl_mlx.server.service import Service, in_thread
from sgl_mlx.server.tools.calls import Call, ToolChoice, checked_tools
from sgl_mlx.server.turn import Turn, Wanted
from sgl_mlx.server.visit import Visit


class ChatRequest(Sampling, kw_only=True):
    """The body of `/v1/chat/completions`; unknown fields are ignored.

    If `input_ids` is given, its token ids are the prompt, and `messages` is not rendered.
    """

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool = True
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    input_ids: list[int] | None = None
    functions: Annotated[Any, Refused("give tools")] = None
    function_call: Annotated[Any, Refused("give tool_choice", ("none", "auto"))] = None
    modalities: Annotated[Any, Refused('the answer is text: give ["text"]', (["text"],))] = None
    audio: Annotated[Any, Refused("the answer is text")] = None
    web_search_options: Annotated[Any, Refused("nothing is fetched; put all into messages")] = None
    chat_template: Annotated[Any, Refused("the model's own chat template is used")] = None


def routes(service: Service) -> list[Route]:
    """Return the route `/v1/chat/completions`."""

    async def chat(request: Request) -> Response:
        fields = await service.read(request, ChatRequest)
        visit = Visit(service, request, fields)
        call = _Call(visit, fields)
        return await answer(visit, call, fields.stream, failure)

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


class _Call:
    """One request to `/v1/chat/completions`, answered as one JSON document or in chunks."""

    def __init__(self, visit: Visit, fields: ChatRequest) -> None:
        service = self._service = visit.service
        self._visit = visit
        self._fields = fields
        self._tokenizer = service.engine.tokenizer
        self._params = self._sampling()
        self._model = service.model(fields.model)
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        turn = await self._turn()
        rid, asked = asks(self._fields, [turn.prompt], turn.params, "chatcmpl-")
        [samples] = await self._visit.whole(asked)
        usage = Usage()
        choices = [self._choice(i, s, turn, usage) for i, s in enumerate(samples)]
        return {
            **self._head(rid, "chat.completion"),
            "choices": choices,
            "usage": usage.to_dict(),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        turn = await self._turn()
        rid, asked = asks(self._fields, [turn.prompt], turn.params, "chatcmpl-")
        chunks = Chunks(self._fields, self._head(rid, "chat.completion.chunk"))
        readers: dict[int, AnswerReader] = {}
        async with aclosing(self._visit.stream(asked)) as events:
            async for _, event in events:
                chunks.usage.add(0, event)
                if event.sample not in readers:
                    readers[event.sample] = turn.reader(self._visit.answers)
                    yield chunks.frame(_delta(event.sample, {"role": "assistant", "content": ""}))
                for choice in self._pieces(event, readers[event.sample], chunks.usage):
                    yield chunks.frame(choice)
        yield chunks.last()

    def _sampling(self) -> SamplingParams:
        fields = self._fields
        tokens = fields.max_completion_tokens
        tokens = fields.max_tokens if tokens is None else tokens
        if tokens is None or tokens == NO_LIMIT:
            tokens = self._service.context_length
        wanted = {}
        if fields.logprobs:
            wanted = {"return_logprob": True, "top_logprobs_num": fields.top_logprobs or 0}
        elif fields.top_logprobs:
            raise bad_value("top_logprobs needs logprobs: true", "top_logprobs")
        return sampling_params(fields, self._service.limits, max_new_tokens=tokens, **wanted)

    async def _turn(self) -> Turn:
        fields = self._fields
        if fields.input_ids is not None:
            return Turn(fields.input_ids, self._params, Form())
        wanted = Wanted(
            fields.messages,
            self._params,
            checked_tools(fields.tools or ()),
            choice_of(fields.tool_choice, fields.parallel_tool_calls),
            bool(fields.continue_final_message),
            fields.separate_reasoning,
            self._variables(),
        )
        return await in_thread(wanted.turn, self._tokenizer, self._visit.answers.find)

    def _variables(self) -> dict[str, Any]:
        fields = self._fields
        variables = dict(fields.chat_template_kwargs or {})
        if fields.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", fields.reasoning_effort)
        if fields.add_generation_prompt is not None:
            variables.setdefault("add_generation_prompt", fields.add_generation_prompt)
        return variables

    def _head(self, rid: str, kind: str) -> dict[str, Any]:
        return {"id": rid, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, index: int, sample: Completion, turn: Turn, usage: Usage) -> dict[str, Any]:
        reader = turn.reader(self._visit.answers)
        reason = sample.finish_reason
        pieces = reader.add(sample)
        usage.add(0, sample)
        self._count_thoughts(pieces, usage)
        return {
            "index": index,
            "message": message_of(pieces),
            "logprobs": self._scored(sample.logprobs, reason),
            **_end(reason, reader),
        }

    def _pieces(
        self, event: StreamEvent, reader: AnswerReader, usage: Usage
    ) -> Iterator[dict[str, Any]]:
        """Yield the `choices` entries for a stream event: text and tool calls, then the finish."""
        reason = event.finish_reason
        before = reader.calls
        pieces = reader.add(event)
        self._count_thoughts(pieces, usage)
        deltas = list(_deltas(pieces, before))
        scored = self._scored(event.logprobs, reason)
        if scored and scored["content"] and not deltas:
            deltas.append({"content": ""})
        for delta in deltas:
            yield _delta(event.sample, delta, scored)
            scored = None
        if reason is not None:
            yield {**_delta(event.sample, {}), **_end(reason, reader)}

    def _count_thoughts(self, pieces: list[Piece], usage: Usage) -> None:
        thought = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
        if thought:
            usage.reasoning += len(self._tokenizer.encode(thought, False))

    def _scored(self, found: Logprobs | None, reason: FinishReason | None) -> dict[str, Any] | None:
        if found is None:
            return None
        tokens, tops = without_end(found.output, found.output_top, reason)
        return {"content": chat_logprobs(tokens, tops, self._tokenizer), "refusal": None}


def choice_of(given: str | dict[str, Any] | None, parallel: bool | None) -> ToolChoice | None:
    """Parse `tool_choice`; returns None if no tool may be called, raises `HttpError` if invalid.

    Args:
        parallel: False allows one call only; True and None allow several.
    """
    several = parallel is not False
    match given:
        case None | "auto":
            return ToolChoice(several=several)
        case "none":
            return None
        case "required":
            return ToolChoice(needed=True, several=several)
        case {"type": "allowed_tools", "allowed_tools": allowed}:
            return _among_allowed(allowed, several)
        case {"type": "allowed_tools"}:
            return _among_allowed(given, several)
        case {"function": {"name": str() as name}} | {
            "type": "function" | "custom",
            "name": str() as name,
        }:
            return ToolChoice(needed=True, names=(name,), several=several)
    raise bad_value(
        f"tool_choice must be none, auto, required or a function by its name, got {shown(given)}",
        "tool_choice",
    )


def _among_allowed(given: Any, several: bool) -> ToolChoice:
    """Parse the `allowed_tools` of a tool choice: a mode, and functions by their names."""
    match given:
        case {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            functions = [t.get("function", t) for t in tools if isinstance(t, dict)]
            names = tuple(str(f.get("name")) for f in functions if isinstance(f, dict))
            return ToolChoice(needed=mode == "required", names=names, several=several)
    raise bad_value(
        "tool_choice.allowed_tools must have the mode auto or required and a list of tools, "
        f"got {shown(given)}",
        "tool_choice",
    )


def message_of(pieces: list[Piece]) -> dict[str, Any]:
    """Join an answer's pieces into an assistant message in OpenAI's shape."""
    texts = {
        kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("text", "reasoning")
    }
    calls = [p.call for p in pieces if p.call is not None]
    message: dict[str, Any] = {"role": "assistant", "content": texts["text"], "refusal": None}
    if texts["reasoning"]:
        message["reasoning_content"] = texts["reasoning"]
    if calls:
        message["content"] = texts["text"] or None
        message["tool_calls"] = [_called(call) for call in calls]
    return message


def _deltas(pieces: list[Piece], index: int) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        if piece.call is not None:
            yield {"tool_calls": [{"index": index, **_called(piece.call)}]}
            index += 1
        else:
            yield {"content" if piece.kind == "text" else "reasoning_content": piece.text}


def _called(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.id, "type": "function", "function": function}


def _end(reason: FinishReason, reader: AnswerReader) -> dict[str, Any]:
    ended = finish(reason)
    if reader.calls and reason.type == "stop":
        ended["finish_reason"] = "tool_calls"
    return ended


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
