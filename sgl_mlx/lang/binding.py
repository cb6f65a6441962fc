"""`Binding` and `Step`: the variables of a stream, and the queued nodes that set them."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.lang.ir import Expr
from sgl_mlx.lang.site import Site

Name = str | None
"""The name of a variable; None for a `gen` without a name."""


@dataclass(eq=False)
class Binding:
    """One assignment to a variable: the future of its value, and the backend's `meta_info`."""

    value: Future[Any] = field(default_factory=Future)
    meta: Any = None

    def settle(self, value: Any, meta: Any = None) -> Binding:
        self.meta = meta
        with suppress(InvalidStateError):  # the stream was stopped before
            self.value.set_result(value)
        return self

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # the value arrived first
            self.value.set_exception(error)

    @property
    def settled(self) -> bool:
        return self.value.done() and self.value.exception() is None


@dataclass(frozen=True, eq=False)
class Step:
    """A node in the queue of a stream, with the bindings of the variables that it sets.

    If the node is an `ExprList`, it holds only text, pictures and roles, which are written
    together.
    """

    node: Expr
    site: Site
    params: SamplingParams
    bindings: tuple[Binding, ...]
