"""Variables of a stream and the steps that give them values."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.lang.ir import Expr
from sgl_mlx.lang.site import Site

Name = str | None
"""A variable's name; what a `gen` without one writes is kept under None."""


@dataclass(eq=False)
class Binding:
    """One assignment to a variable: its value once known, and what the backend said about it."""

    value: Future[Any] = field(default_factory=Future)
    meta: Any = None

    def settle(self, value: Any, meta: Any = None) -> Binding:
        self.meta = meta
        with suppress(InvalidStateError):  # the stream was stopped meanwhile
            self.value.set_result(value)
        return self

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # the value came first
            self.value.set_exception(error)

    @property
    def settled(self) -> bool:
        return self.value.done() and self.value.exception() is None


@dataclass(frozen=True, eq=False)
class Step:
    """A node on its way through a stream, with the variables it will give values.

    An `ExprList` here holds text and roles alone, which are written in one go.
    """

    node: Expr
    site: Site
    params: SamplingParams
    bindings: tuple[Binding, ...]


def result_of(future: Future[Any]) -> Any:
    """Wait for a value. The error, if that is what comes, keeps the traceback of its origin."""
    error = future.exception()
    if error is not None:
        raise error
    return future.result()
