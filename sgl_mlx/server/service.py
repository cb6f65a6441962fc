"""State that all routes share: the engine, model names, limits, and the prompts in progress."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.limits import Limits
from sgl_mlx.server import bodies
from sgl_mlx.server.doctor.history import History
from sgl_mlx.server.engine import ServedEngine
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.flight import Flights
from sgl_mlx.server.memory import Memory
from sgl_mlx.server.metrics import Metrics

T = TypeVar("T")
_BEAT_WAIT = 0.5


class Service:
    """One engine behind the HTTP routes, with its limits, metrics and remembered answers.

    Args:
        names: model names that requests may use; answers show the first one by default. If empty,
            the engine's `model_name` is the only name.
        limits: bounds on requests; None for the defaults.
        any_model: accept every model name.
        log: file to which prompts are appended for `sgl-mlx cache-doctor`; None for no file.
    """

    def __init__(
        self,
        engine: ServedEngine,
        names: Sequence[str] = (),
        limits: Limits | None = None,
        any_model: bool = False,
        log: Path | None = None,
    ) -> None:
        self.engine = engine
        self.names = tuple(names) or (engine.model_name,)
        self.limits = limits or Limits()
        self.metrics = Metrics(self.names[0])
        self.flights = Flights(engine, self.limits, self.metrics)
        self.answers = Memory(self.limits.max_answer_tokens)
        self.history = History(log)
        self.started = int(time.time())
        self._any_model = any_model
        self._beat: asyncio.Task[dict[str, Any]] | None = None
        self._beat_began = time.monotonic()
        self._info: dict[str, Any] = engine.get_server_info()

    @property
    def context_length(self) -> int:
        """Largest number of tokens in a prompt and its output together."""
        context = self._info.get("context_length") or 0
        return int(min(context, self._info.get("max_total_num_tokens") or context))

    def model(self, asked: str | None) -> str:
        """Return the model name for the answer.

        Args:
            asked: the request's model name; None, "" and "default" mean the first served name.

        Raises:
            HttpError: 404 for a name that is not served, unless every name is accepted.
        """
        if asked in (None, "", "default"):
            return self.names[0]
        assert asked is not None
        if asked not in self.names and not self._any_model:
            raise HttpError(
                404,
                f"the model {asked!r} is not served; served are {', '.join(self.names)}",
                "model_not_found",
                "model",
            )
        return asked

    async def read(self, request: Request, shape: type[T]) -> T:
        """Decode a request's JSON body into `shape`; raises as `bodies.read` does."""
        return await bodies.read(request, shape, self.limits)

    async def info(self) -> dict[str, Any]:
        """Return the engine's server info; if the engine is busy, the info that it gave last.

        Raises:
            HttpError: 503 if the engine has stopped or has not answered for `stall_seconds`.
        """
        if self._beat is None or self._beat.done():
            self._beat_began = time.monotonic()
            self._beat = asyncio.create_task(self._ask_engine())
        await asyncio.wait([self._beat], timeout=_BEAT_WAIT)
        if self._beat.done():
            try:
                return self._beat.result()
            except EngineStoppedError as error:
                raise HttpError(503, str(error), "engine_stopped", retry_after=5) from error
        silence = time.monotonic() - self._beat_began
        if silence > self.limits.stall_seconds:
            raise HttpError(
                503, f"the engine has not answered for {silence:.0f} seconds", retry_after=5
            )
        return self._info

    async def _ask_engine(self) -> dict[str, Any]:
        self._info = await in_thread(self.engine.get_server_info)
        return self._info


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Return the result of a slow function, called on a thread other than the event loop's."""
    return await asyncio.to_thread(function, *args)


def new_id(prefix: str) -> str:
    """Return a new unique id that begins with `prefix`."""
    return f"{prefix}{uuid.uuid4().hex}"
