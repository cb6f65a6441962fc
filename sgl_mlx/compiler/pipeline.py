"""Passes: pure functions from graph to graph, each in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.passes.hoist import hoist
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.compiler.passes.parallel import parallel
from sgl_mlx.compiler.passes.prefetch import prefetch
from sgl_mlx.compiler.reorder.by_model import ByModel
from sgl_mlx.compiler.reorder.mover import Proposer, by_rules, reorder
from sgl_mlx.errors import ProgramError

Reorder = Literal["rules", "llm"] | None
"""Who proposes to move instructions ahead of arguments; None leaves every prompt as it is."""


def optimised(graph: Graph, propose: Proposer | None = None) -> Graph:
    """The graph after all passes; prompts are changed only if a proposer is given.

    Hints come last: where they belong depends on the order of the questions.
    """
    moved = reorder(graph, propose) if propose else merge(graph)
    return prefetch(parallel(hoist(moved)))


def standard_passes(name: Reorder = None, backend: Any = None) -> list[Callable[[Graph], Graph]]:
    """What `compile` applies.

    Raises:
        ProgramError: see `proposer`.
    """
    return [partial(optimised, propose=proposer(name, backend))]


def proposer(name: Reorder, backend: Any = None) -> Proposer | None:
    """What `compile(reorder=name)` means; "llm" asks the backend when the program is compiled.

    Raises:
        ProgramError: for another name, or for "llm" without a backend.
    """
    if name is None:
        return None
    if name == "rules":
        return by_rules
    if name == "llm" and backend is not None:
        return ByModel(backend)
    raise ProgramError(
        'compile(reorder="llm") needs a backend to ask'
        if name == "llm"
        else f'reorder must be None, "rules" or "llm", got {name!r}'
    )
