"""One operation on a context: the content that it works on, and the storing of its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from sgl_mlx.core import SamplingParams
from sgl_mlx.server.contexts.content import Beginning, Chat, Content, Plain
from sgl_mlx.server.contexts.store import Context, Contexts
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.service import Service, in_thread
from sgl_mlx.server.turn import Turn
from sgl_mlx.server.visit import Visit

NEW = "new"
"""The id that stands for an empty context."""


class WorkRequest(Beginning, kw_only=True):
    """Fields of all operations on a context.

    Attributes:
        fork: True works on a copy, whose id is in the answer.
        keep: False stores no result and leaves the context as it was.
    """

    fork: bool = False
    keep: bool = True
    rid: str | None = None
    priority: int | None = None
    model: str | None = None


Fields = TypeVar("Fields", bound=WorkRequest)


@dataclass(frozen=True)
class Work(Generic[Fields]):
    """An operation that is being done on a context.

    Attributes:
        context: the context that the path names; a new context, not stored yet, for `new`.
        before: the context's content when the operation began.
        content: `before`, forked if the request says so, and with the request's addition.
    """

    contexts: Contexts
    visit: Visit
    fields: Fields
    context: Context
    before: Content
    content: Content

    @classmethod
    def of(
        cls, service: Service, contexts: Contexts, request: Request, fields: Fields
    ) -> Work[Fields]:
        """Begin an operation on the context that the path names.

        Raises:
            HttpError: 404 if there is no such context; 400 if the request's addition is malformed
                or of the wrong kind for the context.
        """
        visit = Visit(service, request, fields.keys)
        id = request.path_params["id"]
        if id == NEW:
            empty: Content = Plain() if fields.messages is None else Chat()
            context = Context(visit.client, visit.keys, empty)
        else:
            context = contexts.get(id, visit.client)
            visit = Visit(service, request, context.keys)
        before = context.content
        content = before.fork(0) if fields.fork else before
        if not fields.empty:
            content = content.add(fields)
        return cls(contexts, visit, fields, context, before, content)

    async def turn(self, params: SamplingParams) -> Turn:
        """Return the content as a `Turn`: its prompt, and how to parse the model's answer."""
        visit = self.visit
        tokenizer = visit.service.engine.tokenizer
        return await in_thread(self.content.turn, tokenizer, params, visit.answers)

    def finish(self, content: Content) -> Context:
        """Store `content`, the result, in the context or in a new fork; return that context.

        If the request's `keep` is False, nothing is stored, and the context is returned unchanged.

        Raises:
            HttpError: 409 if another request changed the context meanwhile, 404 if one deleted it.
        """
        context, fields = self.context, self.fields
        if not fields.keep:
            return context
        if fields.fork:
            copy = Context(context.client, context.keys, content, context.lifetime)
            return self.contexts.add(copy)
        if context.deleted:
            raise HttpError(404, f"context {context.id} was deleted meanwhile", "context_not_found")
        if context.content is not self.before:
            raise HttpError(
                409, f"context {context.id} was changed meanwhile; work on a fork", "conflict"
            )
        context.content = content
        return self.contexts.add(context)
