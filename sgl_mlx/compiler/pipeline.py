"""The passes that `compile` applies to a graph, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sgl_mlx import bounds
from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.compiler.passes.parallel import parallel
from sgl_mlx.compiler.passes.prefetch import prefetch
from sgl_mlx.compiler.reorder.mover import reorder as move_instructions
from sgl_mlx.errors import ProgramError

Pass = Callable[[Graph], Graph]
Reorder = Literal["rules"] | None
"""How instructions move ahead of arguments: by "rules"; None leaves every prompt unchanged."""


def standard_passes(reorder: Reorder = None) -> list[Pass]:
    """Return the passes that `compile` applies by default, in order.

    Prefetch is the last pass, since the place of its hints depends on the order of the nodes.

    Raises:
        ProgramError: `reorder` is neither None nor "rules".
    """
    if reorder is not None and not (isinstance(reorder, str) and reorder == "rules"):
        bounds.refuse("reorder", reorder, 'None or "rules"', ProgramError)
    return [move_instructions if reorder else merge, parallel, prefetch]
