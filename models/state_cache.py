"""Stand-in for mlx-lm's `ArraysCache`, the recurrent state of one layer.

A recurrent module of mlx-lm computes sequences of equal length. `regroup` gives such a module a
subclass that calls it once for each group of rows of one length (see `RowGroups`), each time with a
real `ArraysCache` of those rows' states. `probe_states` finds the recurrent modules by running the
model: `StateCache` raises `StateTouched` with the innermost module that reads or writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.cache import ArraysCache

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.states import RowGroup, RowGroups, StateShape

_MOST_PASSES = 12
"""Most forward passes in which `probe_states` looks for modules and shapes."""

State = list[mx.array | None]
"""Arrays `(rows, ...)` of one layer; None where nothing was written yet."""


class StateTouched(Exception):
    """Access to a layer's state by a module that was not given to `regroup`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(type(module).__name__)
        self.module = module


class StateCache:
    """State of one recurrent layer in a ragged step.

    Attributes:
        groups: the step's rows by length.
        before: the state before the step, of all rows.
    """

    def __init__(self, groups: RowGroups, before: State) -> None:
        self.groups = groups
        self.before = before
        self._after: dict[int, list[mx.array]] = {}
        # pipelines of mlx-lm make the last cache's keys depend on what they send
        self.keys = mx.array(0)

    @property
    def after(self) -> list[mx.array]:
        """The state after the step, of all rows.

        Raises:
            UnsupportedModelError: if the model did not write all of it.
        """
        if set(self._after) != set(range(len(self.before))):
            raise UnsupportedModelError("a recurrent layer does not write all of its state")
        return [self.groups.join_rows(self._after[i]) for i in range(len(self.before))]

    def make_mask(self, length: int) -> None:
        """Return None: no row is padded, so there is no mask."""

    def caches(self) -> list[ArraysCache]:
        """Make an `ArraysCache` for each group of rows.

        A second module that keeps a part of the same state gets the arrays that the first module
        left.
        """
        made = []
        for n, group in enumerate(self.groups.groups):
            arrays = [None if a is None else group.take_rows(a) for a in self.before]
            for i, parts in self._after.items():
                arrays[i] = parts[n]
            given = ArraysCache(len(arrays))
            given.cache = arrays
            made.append(given)
        return made

    def keep(self, caches: Sequence[ArraysCache]) -> None:
        """Keep the states that a module has left in the groups' caches."""
        for i in range(len(self.before)):
            parts = [given[i] for given in caches]
            if all(part is not None for part in parts):
                self._after[i] = parts

    def write(self, index: int, array: mx.array) -> None:
        """Set array `index` of the state after the step to `array (rows, ...)`."""
        self._after[index] = [group.take_rows(array) for group in self.groups.groups]

    def __getitem__(self, index: int) -> mx.array:
        raise StateTouched(_innermost_module())

    def __setitem__(self, index: int, value: mx.array) -> None:
        raise StateTouched(_innermost_module())


def probe_states(
    model: nn.Module, sizes: Sequence[int], run: Callable[[Sequence[StateCache]], None]
) -> list[StateShape]:
    """Find a model's recurrent modules, `regroup` them, and find the shapes of their states.

    The first pass has no states. Each further pass starts from zeros of the shapes that the
    previous pass left, until two passes leave the same shapes. Nothing is evaluated.

    Args:
        sizes: number of arrays of state of each recurrent layer.
        run: runs the model over two tokens of one row, with one cache for each recurrent layer.

    Raises:
        UnsupportedModelError: if the shapes do not settle, or a layer leaves some of its state
            unwritten.
    """
    before: list[State] = [[None] * size for size in sizes]
    shapes: list[StateShape] = []
    for _ in range(_MOST_PASSES if before else 0):
        caches = [StateCache(RowGroups((2,)), arrays) for arrays in before]
        try:
            run(caches)
        except StateTouched as e:
            regroup(model, type(e.module))
            continue
        after = [cache.after for cache in caches]
        found = [StateShape(i, a.shape[1:], a.dtype) for i, own in enumerate(after) for a in own]
        if found == shapes:
            return shapes
        shapes, before = found, [[mx.zeros_like(array) for array in own] for own in after]
    if before:
        raise UnsupportedModelError("the shapes of its recurrent state change with every pass")
    return shapes


def regroup(model: nn.Module, kind: Any) -> None:
    """Make a model's modules of class `kind` compute rows of equal length together, in place.

    Without a `StateCache` among their arguments the modules run as mlx-lm's do.
    """
    regrouped = _regrouped(kind)
    for module in model.modules():
        if type(module) is kind:
            module.__class__ = regrouped


@cache
def _regrouped(kind: Any) -> Any:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        state = next((a for a in given if isinstance(a, StateCache)), None)
        if state is None:
            return kind.__call__(self, *args, **kwargs)
        caches = state.caches()
        outputs = [
            kind.__call__(
                self,
                *(_of_group(a, group, own, state.groups.tokens) for a in args),
                **{k: _of_group(a, group, own, state.groups.tokens) for k, a in kwargs.items()},
            )
            for group, own in zip(state.groups.groups, caches, strict=True)
        ]
        state.keep(caches)
        return tree_map(lambda *parts: state.groups.join_tokens(parts), outputs[0], *outputs[1:])

    return type(kind.__name__, (kind,), {"__call__": __call__})


def _of_group(argument: Any, group: RowGroup, own: ArraysCache, tokens: int) -> Any:
    """Select one group's part of an argument of a recurrent module.

    An array of tokens is regrouped. Of an array of positions `(tokens,)`, the first position of
    each row is taken.
    """
    if isinstance(argument, StateCache):
        return own
    if not isinstance(argument, mx.array) or argument.ndim == 0 or argument.shape[0] != tokens:
        return argument
    return group.take_firsts(argument) if argument.ndim == 1 else group.take_tokens(argument)


def _innermost_module() -> nn.Module:
    """Find the module whose method is running: the nearest caller with a module as `self`."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module
        frame = frame.f_back  # type: ignore[assignment]
    raise UnsupportedModelError("recurrent state is used outside of a module")
