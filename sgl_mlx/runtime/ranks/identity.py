"""Identity of a rank: the facts in which all ranks must be equal, and where each one runs."""

from __future__ import annotations

import os
import platform
import socket
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any

import psutil

from sgl_mlx import machine
from sgl_mlx.errors import BackendError

_PACKAGES = ("sgl-mlx", "mlx", "mlx-lm")


def identity(rank: int, size: int) -> dict[str, Any]:
    """Describe this process for rank 0: its versions, its command line and where it runs."""
    return {
        "rank": rank,
        "common": {
            "number of ranks": size,
            **{f"version of {name}": metadata.version(name) for name in _PACKAGES},
            "version of Python": ".".join(map(str, sys.version_info[:2])),
            "device": f"{machine.system()} {platform.machine()} gpu={machine.on_gpu()}",
            "arguments": sys.argv[1:],
        },
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": [os.getpid(), psutil.Process().create_time()],
    }


def check(mine: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare the identity of another rank with that of rank 0.

    Raises:
        BackendError: they differ; the message says in what.
    """
    theirs = other.get("common", {})
    for name, value in mine["common"].items():
        if theirs.get(name) != value:
            raise BackendError(
                f"rank {other.get('rank')} on {other.get('host')} does not fit rank 0: {name} is "
                f"{theirs.get(name)!r} there and {value!r} here; start all ranks alike"
            )


def kill_if_stopped_here(other: dict[str, Any]) -> None:
    """Kill a silent rank if it is a stopped process of this machine; nothing else would end it."""
    if other["machine"] != _machine():
        return
    number, started = other["process"]
    with suppress(psutil.Error):  # it has ended already
        process = psutil.Process(number)
        stopped = process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        if stopped and process.create_time() == started:  # not a later process of that number
            process.kill()


def _machine() -> list[Any]:
    """Return a value that differs between machines.

    It also differs between containers on one machine that have their own process numbers.
    """
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return [socket.gethostname(), psutil.boot_time(), space]
