"""The place where a process becomes one of several ranks."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache

from sgl_mlx.errors import BackendError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import RunnableModel, open_model
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.ranks.follower import follow
from sgl_mlx.runtime.ranks.launch import Launch
from sgl_mlx.runtime.ranks.leader import Leader


@cache
def join(launch: Launch) -> Leader:
    """Connect all ranks of a launch; returns on rank 0 alone, always with the same connections.

    Every other rank runs what rank 0 sends until rank 0's process ends, and then ends too.

    Raises:
        BackendError: on rank 0, when a rank does not come or does not fit.
    """
    if launch.rank > 0:
        follow(launch)
    leader = Leader(launch)
    atexit.register(leader.leave)
    return leader


def open_on_ranks(
    leader: Leader,
    config: EngineConfig,
    on_read: Callable[[], None],
    loaded: LoadedModel | None = None,
) -> RunnableModel:
    """Load each rank's share of a model; assemble an engine around the share of this rank.

    Raises:
        BackendError: a rank was lost or cannot load its share; or the options are not for several
            ranks, for instance a model that is loaded already.
        Errors as `assembly.open_model` raises them.
    """
    if loaded is not None:
        raise BackendError(
            "a model that is loaded already cannot run over several ranks, which load their shares "
            "themselves: give model_path, or start one process without mlx.launch, as for selfcheck"
        )
    with leader.opening(config) as ranks:
        return open_model(config, on_read, ranks=ranks)
