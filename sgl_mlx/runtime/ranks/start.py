"""The choice between one process and several ranks when an engine starts."""

from __future__ import annotations

from functools import partial

from sgl_mlx.runtime.assembly import OpenModel
from sgl_mlx.runtime.ranks.launch import launched


def on_all_ranks(open_model: OpenModel) -> OpenModel:
    """Connect all ranks if `mlx.launch` started this process; see `ranks.join`.

    Returns:
        A function that opens a model on all ranks; `open_model` in a process started alone.
    """
    launch = launched()
    if launch is None:
        return open_model
    from sgl_mlx.runtime.ranks.join import join, open_on_ranks  # several ranks alone need this

    return partial(open_on_ranks, join(launch))
