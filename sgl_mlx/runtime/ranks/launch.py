"""Facts about the launch of this process as one of several ranks, from its environment.

`mlx.launch` describes the ranks in environment variables. Nothing here imports MLX, so a process
that was started alone learns that it is alone by one look-up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgl_mlx.errors import BackendError

RANK = "MLX_RANK"
"""Variable that holds the number of this process among all ranks."""
ADDRESS = "SGL_MLX_RANKS_ADDRESS"
"""Variable with the host:port on which rank 0 listens for connections of the other ranks."""
_PORTS_ABOVE = 1000
"""Distance of rank 0's port from the first port of MLX's own connections, without `ADDRESS`."""


@dataclass(frozen=True)
class Launch:
    """A process among the ranks of one launch.

    Attributes:
        rank: number of this process; rank 0 schedules.
        size: number of ranks.
        backend: how MLX connects them.
        host, port: where rank 0 listens for the other ranks.
    """

    rank: int
    size: int
    backend: Literal["ring", "jaccl"]
    host: str
    port: int


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Read how this process was launched; None if it was started alone.

    Raises:
        BackendError: the variables are incomplete, or of a way to launch that is not supported.
    """
    if RANK not in environment:
        return None
    if environment.get("MLX_IBV_DEVICES"):
        devices, backend = _read(environment["MLX_IBV_DEVICES"]), "jaccl"
        first = environment.get("MLX_JACCL_COORDINATOR", "")
    elif environment.get("MLX_HOSTFILE"):
        devices, backend = _read(environment["MLX_HOSTFILE"]), "ring"
        first = devices[0][0] if devices else ""
    else:
        raise BackendError(
            f"{RANK} is set, but neither MLX_HOSTFILE nor MLX_IBV_DEVICES: start the ranks by "
            "`mlx.launch --backend ring` or `--backend jaccl`"
        )
    if len(devices) < 2:
        return None  # mlx.launch with one process
    host, port = _address(environment.get(ADDRESS), first)
    number = environment[RANK]
    if not number.isdecimal() or int(number) >= len(devices):
        raise BackendError(f"{RANK}={number}, but there are {len(devices)} ranks, counted from 0")
    return Launch(int(number), len(devices), "jaccl" if backend == "jaccl" else "ring", host, port)


def _read(path: str) -> list[Any]:
    """Read the list of a host file, with one entry for each rank; an empty file is an empty list.

    Raises:
        BackendError: it cannot be read, or holds something else.
    """
    try:
        text = Path(path).read_text("utf-8").strip()
        entries = json.loads(text) if text else []
    except (OSError, ValueError) as error:
        raise BackendError(f"the host file {path} of the ranks cannot be read: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(e, list) and e for e in entries):
        raise BackendError(f"the host file {path} has to hold a list with one list for each rank")
    return entries


def _address(given: str | None, first: str) -> tuple[str, int]:
    """Return the host and port on which rank 0 listens for the other ranks.

    Args:
        given: the value of the variable `ADDRESS`. Without it, the port is derived from `first`.
        first: the first address of MLX's own connections.
    """
    host, _, port = (given or first).rpartition(":")
    if not host or not port.isdecimal():
        source = f"{ADDRESS}={given}" if given else f"the first address of the ranks, {first!r},"
        raise BackendError(f"{source} is not of the form host:port")
    if given:
        return host, int(port)
    above = int(port) + _PORTS_ABOVE
    return host, above if above < 2**16 else int(port) - _PORTS_ABOVE
