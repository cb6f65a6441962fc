"""The passes that `compile` applies, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.compiler.passes.parallel import parallel
from sgl_mlx.compiler.passes.prefetch import prefetch
from sgl_mlx.compiler.reorder.mover import reorder as move_instructions
from sgl_mlx.errors import ProgramError

Pass = Callable[[Graph], Graph]
Reorder = Literal["rules"] | None
"""How instructions move ahead of arguments; None leaves every prompt as it is."""


def standard_passes(reorder: Reorder = None) -> list[Pass]:
    """List the passes of `compile`. Hints come last: their place depends on the nodes' order.

    Raises:
        ProgramError: for an unknown `reorder`.
    """
    if reorder not in (None, "rules"):
        raise ProgramError(f'reorder must be None or "rules", got {reorder!r}')
    return [move_instructions if reorder else merge, parallel, prefetch]
