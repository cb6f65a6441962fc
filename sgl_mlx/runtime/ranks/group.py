"""MLX's group of all ranks, through which they add up their results."""

from __future__ import annotations

import faulthandler

import mlx.core as mx

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.ranks.launch import Launch

_SECONDS = 60.0
"""Longest wait for MLX's own connections."""


def join_group(launch: Launch) -> mx.distributed.Group:
    """Connect to the other ranks by MLX; returns when all ranks have called this.

    MLX waits in C++ and lets no Python run meanwhile. If it waits too long, `faulthandler`, which
    needs no Python, shows where and ends the process with code 1.

    Raises:
        BackendError: a rank cannot be reached.
    """
    faulthandler.dump_traceback_later(_SECONDS, exit=True, file=2)
    try:
        return mx.distributed.init(strict=True, backend=launch.backend)
    except RuntimeError as error:
        raise BackendError(
            f"rank {launch.rank} cannot reach the other ranks by MLX's {launch.backend}: {error}; "
            "are the ports of the host file open?"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
