"""The routes of `/v1/contexts`.

The operations `extend`, `generate`, `score` and `select` take the id of a context, or `new` for an
empty context. They may first add to the context (`text`, `parts`, `messages`), and may work on a
fork of it (`fork: true`). All but `score` store the result and answer with the context's id, or the
fork's. So forking a context, asking a question and getting the answer costs one round trip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.bounds import shown
from sgl_mlx.core import SamplingParams
from sgl_mlx.server.answer import answer
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.choosing import choose, method_named
from sgl_mlx.server.contexts.content import Addition, Chat, Content, Plain
from sgl_mlx.server.contexts.generation import Generation, failure
from sgl_mlx.server.contexts.pins import Pins
from sgl_mlx.server.contexts.requests import (
    ChoicesRequest,
    CreateRequest,
    ForkRequest,
    GenerateRequest,
    JoinRequest,
    UpdateRequest,
)
from sgl_mlx.server.contexts.store import Context, Contexts
from sgl_mlx.server.contexts.work import Work, WorkRequest
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.service import Service, in_thread, new_id
from sgl_mlx.server.sse import while_connected
from sgl_mlx.server.visit import Visit

_MODES = ("concatenate", "parallel")


def routes(service: Service) -> list[Route]:
    """Return the routes under `/v1/contexts`."""
    contexts = Contexts(service.limits.max_contexts)
    doors = _Doors(service, contexts, Pins(service, contexts))
    one = "/v1/contexts/{id}"
    return [
        Route("/v1/contexts", doors.listed),
        Route("/v1/contexts", doors.create, methods=["POST"]),
        Route(one, doors.get),
        Route(one, doors.delete, methods=["DELETE"]),
        Route(one, doors.update, methods=["POST"]),
        *(
            Route(f"{one}/{name}", route, methods=["POST"])
            for name, route in {
                "fork": doors.fork,
                "extend": doors.extend,
                "join": doors.join,
                "generate": doors.generate,
                "score": doors.score,
                "select": doors.select,
            }.items()
        ),
    ]


class _Doors:
    """The handlers of the routes under `/v1/contexts`."""

    def __init__(self, service: Service, contexts: Contexts, pins: Pins) -> None:
        self._service = service
        self._contexts = contexts
        self._pins = pins

    async def create(self, request: Request) -> Response:
        fields = await self._service.read(request, CreateRequest)
        self._service.model(fields.model)
        visit = Visit(self._service, request, fields.keys)
        content: Content = Plain() if fields.messages is None else Chat(tools=fields.tools or ())
        context = Context(
            visit.client, visit.keys, content.add(fields), _lifetime(fields.lifetime), fields.pinned
        )
        counted = await self._prefill(visit, context) if fields.prefill else {}
        self._contexts.add(context)
        self._pins.wake()
        return _answer(visit, {**_told(context), **counted})

    async def listed(self, request: Request) -> Response:
        visit = Visit(self._service, request)
        data = [_told(context) for context in self._contexts.of(visit.client)]
        return json_response({"object": "list", "data": data})

    async def get(self, request: Request) -> Response:
        context = self._context(request)
        return json_response({**_told(context), **context.content.shown()})

    async def update(self, request: Request) -> Response:
        fields = await self._service.read(request, UpdateRequest)
        context = self._context(request)
        if fields.lifetime is not None:
            context.lifetime = _lifetime(fields.lifetime)
        if fields.pinned is not None:
            context.pinned = fields.pinned
            self._pins.wake()
        return json_response(_told(context))

    async def delete(self, request: Request) -> Response:
        context = self._context(request)
        self._contexts.drop(context.id, context.client)
        return json_response({"id": context.id, "object": "context", "deleted": True})

    async def fork(self, request: Request) -> Response:
        fields = await self._service.read(request, ForkRequest)
        context = self._context(request)
        count = len(fields.extend or ()) or fields.n
        if count < 1 or fields.gap < 0:
            raise bad_value(
                f"a fork needs n of at least 1 and a gap of at least 0, got n={count} and "
                f"gap={fields.gap}",
                "n" if count < 1 else "gap",
            )
        self._service.limits.check("max_prompts", count, f"the fork makes {count:,} contexts")
        added = fields.extend or [Addition()] * count
        contents = [_added(context.content.fork(fields.gap), more) for more in added]
        made = [self._contexts.add(_copy(context, content)) for content in contents]
        return json_response({"object": "list", "data": [_told(fork) for fork in made]})

    async def extend(self, request: Request) -> Response:
        work = await self._work(request, WorkRequest)
        return json_response(_told(work.finish(work.content)))

    async def join(self, request: Request) -> Response:
        fields = await self._service.read(request, JoinRequest)
        context = self._context(request)
        branches = [self._contexts.get(id, context.client).content for id in fields.contexts]
        if not branches or any(type(b) is not type(context.content) for b in branches):
            raise bad_value("contexts must name forks of the same kind as this one", "contexts")
        if fields.mode not in _MODES:
            raise bad_value(
                f"mode must be one of {', '.join(_MODES)}, got {shown(fields.mode)}", "mode"
            )
        joined: Callable[..., Content] = context.content.join
        context.content = joined(branches, fields.mode == "parallel")
        return json_response(_told(context))

    async def generate(self, request: Request) -> Response:
        work = await self._work(request, GenerateRequest)
        call = Generation(work, self._params(work.fields.sampling_params))
        return await answer(work.visit, call, work.fields.stream, failure)

    def _params(self, given: dict[str, Any] | None) -> SamplingParams:
        return SamplingParams.of(given).validate(self._service.limits)

    async def score(self, request: Request) -> Response:
        work = await self._work(request, ChoicesRequest)
        scores = await while_connected(request.receive, _scores(work, work.fields.unconditional))
        rows = [
            {
                "text": choice.text,
                "tokens": [t.to_list() for t in choice.tokens],
                "unconditional": None
                if choice.unconditional is None
                else [t.to_list() for t in choice.unconditional],
            }
            for choice in scores.choices
        ]
        counts = {"prompt_tokens": scores.prompt_tokens, "cached_tokens": scores.cached_tokens}
        return _answer(work.visit, {"choices": rows, **counts})

    async def select(self, request: Request) -> Response:
        work = await self._work(request, ChoicesRequest)
        method = method_named(work.fields.choices_method)
        unconditional = method.requires_unconditional_logprobs
        scores = await while_connected(request.receive, _scores(work, unconditional))
        chosen = choose(method, scores)
        text = work.fields.choices[chosen.index]
        context = work.finish(work.content.chosen(text))
        told = {"choice": text, "probabilities": chosen.probabilities, "meta_info": chosen.meta}
        return _answer(work.visit, {**told, "context": context.id if work.fields.keep else None})

    def _context(self, request: Request) -> Context:
        client = Visit(self._service, request).client
        return self._contexts.get(request.path_params["id"], client)

    async def _work(self, request: Request, shape: type[Any]) -> Work[Any]:
        fields = await self._service.read(request, shape)
        self._service.model(fields.model)
        return Work.of(self._service, self._contexts, request, fields)

    async def _prefill(self, visit: Visit, context: Context) -> dict[str, Any]:
        params = SamplingParams(max_new_tokens=0)
        args = (self._service.engine.tokenizer, params, visit.answers)
        turn = await in_thread(context.content.turn, *args)
        ask = Ask(turn.prompt, params, new_id("ctx-"))
        [[done]] = await while_connected(visit.request.receive, visit.whole([ask]))
        return {"tokens": done.prompt_tokens, "cached_tokens": done.cached_tokens}


async def _scores(work: Work[Any], unconditional: bool) -> Any:
    fields = work.fields
    turn = await work.turn(SamplingParams())
    ask = Ask(
        turn.prompt,
        SamplingParams(),
        fields.rid or new_id("ctx-"),
        fields.priority or 0,
        choices=_choices(fields.choices),
        unconditional=unconditional,
    )
    [scores] = await work.visit.scores([ask])
    return scores


def _choices(given: list[str]) -> tuple[str, ...]:
    if not given or not all(given):
        raise bad_value(
            f"choices must be a list of at least one text, none of them empty, got {shown(given)}",
            "choices",
        )
    return tuple(given)


def _added(content: Content, more: Addition) -> Content:
    return content if more.empty else content.add(more)


def _copy(context: Context, content: Content) -> Context:
    return Context(context.client, context.keys, content, context.lifetime)


def _lifetime(seconds: float) -> float:
    if not 0 < seconds <= 1e9:
        raise bad_value(f"lifetime must be a positive number of seconds, got {seconds}", "lifetime")
    return seconds


def _told(context: Context) -> dict[str, Any]:
    left = context.left
    return {
        "id": context.id,
        "object": "context",
        "pinned": context.pinned,
        "expires_in": None if left is None else round(left, 1),
    }


def _answer(visit: Visit, content: dict[str, Any]) -> Response:
    response = json_response(content)
    if visit.cache_header is not None:
        response.headers["x-sgl-cache"] = visit.cache_header
    return response
