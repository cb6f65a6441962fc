"""Several models within a memory budget: opened when needed, closed to make room for another."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from sgl_mlx.errors import BackendError
from sgl_mlx.server.engine import ServedEngine
from sgl_mlx.server.service import in_thread

T = TypeVar("T")
_GIB = 2**30


@dataclass(frozen=True)
class ServedModel:
    """A model that can be opened.

    Attributes:
        name: name that requests use.
        nbytes: bytes of memory that weights and KV pool take, without those of `base`.
        open: loads the model; slow.
        close: ends the engine; slow.
        base: if the model is an adapter, name of the model whose weights it uses; else None.
    """

    name: str
    nbytes: int
    open: Callable[[], ServedEngine]
    close: Callable[[ServedEngine], None]
    base: str | None = None


@dataclass
class _Resident(Generic[T]):
    """An open model, the value that `build` made for it, and the number of its users."""

    model: ServedModel
    engine: ServedEngine
    value: T
    users: int = 0


class Residents(Generic[T]):
    """The open models of a server; requests borrow them by name.

    Requests get their models in the order of their arrival. If a model does not fit, idle models
    are closed, the least recently used first. While no model is idle, the request and all later
    requests wait. An open adapter keeps its base model open.

    Args:
        models: all models, of which the first is the default; a base comes before its adapters.
        budget: bytes that all open models together may take.
        build: makes the value that requests borrow from a model and its open engine.
        free: returns memory to the system after a model was closed; called on another thread.

    Raises:
        BackendError: a model does not fit into the budget; an adapter counts together with its
            base.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        budget: int,
        build: Callable[[ServedModel, ServedEngine], T],
        free: Callable[[], object] = gc.collect,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._budget = budget
        self._build = build
        self._free = free
        self._open: dict[str, _Resident[T]] = {}  # the most recently used comes last
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        for model in models:
            needed = sum(each.nbytes for each in self._with_base(model))
            if needed > budget:
                raise BackendError(
                    f"{model.name} takes {needed / _GIB:.2f} GiB of weights and KV pool, and the "
                    f"budget is {budget / _GIB:.2f} GiB; raise it, or choose a smaller pool "
                    "(max_total_tokens) or a smaller model"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._models)

    @property
    def values(self) -> list[T]:
        """The values of all open models, the least recently used first."""
        return [resident.value for resident in self._open.values()]

    @property
    def nbytes(self) -> int:
        """Bytes that the open models take."""
        return sum(resident.model.nbytes for resident in self._open.values())

    def is_open(self, name: str) -> bool:
        return name in self._open

    @asynccontextmanager
    async def borrowed(self, name: str) -> AsyncIterator[T]:
        """Open a model if it is not open, yield its value, and keep it open until the context ends.

        Raises:
            KeyError: no model has this name.
            Exception: the error of `ServedModel.open` or `build`.
        """
        model = self._models[name]
        used: list[_Resident[T]] = []
        try:
            async with self._turn:
                for each in self._with_base(model):
                    used.append(await self._opened(each))
            yield used[-1].value
        finally:
            for resident in used:
                resident.users -= 1
            self._left.set()

    async def close(self) -> None:
        """Close all models, whether they are in use or not."""
        for name in reversed(list(self._open)):
            await self._closed(name)

    async def _opened(self, model: ServedModel) -> _Resident[T]:
        """Open a model if it is not open; return its resident, with one more user."""
        resident = self._open.pop(model.name, None)
        if resident is None:
            await self._make_room(model.nbytes)
            engine = await in_thread(model.open)
            resident = _Resident(model, engine, self._build(model, engine))
        self._open[model.name] = resident
        resident.users += 1
        return resident

    async def _make_room(self, needed: int) -> None:
        while self.nbytes + needed > self._budget:
            self._left.clear()
            idle = next(self._idle(), None)
            if idle is None:
                await self._left.wait()
            else:
                await self._closed(idle)

    def _idle(self) -> Iterator[str]:
        """Yield the open models that nothing uses, the least recently used first."""
        stood_on = {resident.model.base for resident in self._open.values()}
        for name, resident in self._open.items():
            if not resident.users and name not in stood_on:
                yield name

    async def _closed(self, name: str) -> None:
        resident = self._open.pop(name)
        close, engines = resident.model.close, [resident.engine]
        del resident  # so that the list has the last reference to the engine and its arrays
        await in_thread(lambda: close(engines.pop()))
        await in_thread(self._free)

    def _with_base(self, model: ServedModel) -> list[ServedModel]:
        return [*([self._models[model.base]] if model.base else ()), model]
