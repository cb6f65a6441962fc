"""`/v1/embeddings`: OpenAI's embeddings, if the model makes them."""

from __future__ import annotations

import base64
import math
import struct
import threading
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.bounds import shown
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.engine import ServedEmbedder
from sgl_mlx.server.errors import HttpError, bad_value
from sgl_mlx.server.openai.prompts import OnePrompt, listed_prompts
from sgl_mlx.server.service import Service, in_thread
from sgl_mlx.server.sse import while_connected


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/embeddings`; unknown fields are ignored."""

    texts: str | list[Any] = msgspec.field(name="input")
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def routes(service: Service) -> list[Route]:
    """Return the route `/v1/embeddings`."""

    async def embeddings(request: Request) -> Response:
        fields = await service.read(request, EmbeddingRequest)
        model = service.model(fields.model)
        work = _Work(service, _embedder(service, model), fields)
        try:
            data, tokens = await while_connected(request.receive, in_thread(work.run))
        finally:
            work.stopped.set()
        service.metrics.prompt_tokens.inc(tokens)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": model, "usage": usage})

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


def _embedder(service: Service, model: str) -> ServedEmbedder:
    """Return the model's embedder; raises a 404 `HttpError` if it makes no embeddings."""
    embedder = service.engine.embedder
    if embedder is None or embedder.fault:
        why = embedder.fault if embedder else "it generates text"
        message = f"the model {model!r} makes no embeddings: {why}"
        raise HttpError(404, message, "model_not_found", "model")
    return embedder


class _Work:
    """The embedding of all inputs of a request, one after the other, on another thread.

    Attributes:
        stopped: is set once nobody waits for the answer.
    """

    def __init__(
        self, service: Service, embedder: ServedEmbedder, fields: EmbeddingRequest
    ) -> None:
        self._embedder = embedder
        self._fields = fields
        self._inputs = listed_prompts("input", fields.texts)
        self._vocabulary = service.engine.tokenizer.vocab_size
        self.stopped = threading.Event()
        limits = service.limits
        limits.check("max_prompts", len(self._inputs), f"input has {len(self._inputs):,} texts")
        longest = max((len(text) for text in self._inputs if isinstance(text, str)), default=0)
        limits.check("max_prompt_chars", longest, f"a text of input has {longest:,} characters")
        if fields.dimensions is not None and fields.dimensions < 1:
            raise bad_value(f"dimensions must be at least 1, got {fields.dimensions}", "dimensions")

    def run(self) -> tuple[list[dict[str, Any]], int]:
        """Return the entries of `data`, and the number of tokens of all inputs."""
        data, count = list[dict[str, Any]](), 0
        for i, given in enumerate(self._inputs):
            tokens = self._tokens(given)
            count += len(tokens)
            vector = self._embedder.embed(tokens, self.stopped.is_set)
            if self.stopped.is_set():
                break
            data.append({"object": "embedding", "index": i, "embedding": self._written(vector)})
        return data, count

    def _tokens(self, given: OnePrompt) -> Sequence[int]:
        if not isinstance(given, str):
            wrong = next((t for t in given if not 0 <= t < self._vocabulary), None)
            if wrong is not None:
                raise bad_value(
                    f"input has the token id {wrong}, which is not in the vocabulary (0 to "
                    f"{self._vocabulary - 1})",
                    "input",
                )
            return given
        tokens = self._embedder.tokens(given)
        if not tokens:
            raise bad_value(f"input has a text without tokens: {shown(given)}", "input")
        return tokens

    def _written(self, vector: list[float]) -> list[float] | str:
        """Return a vector as the request wants it: its first `dimensions`, scaled; or base64."""
        wanted = self._fields.dimensions
        if wanted is not None and wanted > len(vector):
            raise bad_value(f"dimensions must be at most {len(vector)}, got {wanted}", "dimensions")
        if wanted is not None and wanted < len(vector):
            kept = vector[:wanted]
            length = math.hypot(*kept) or 1.0
            vector = [x / length for x in kept]
        if self._fields.encoding_format != "base64":
            return vector
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
