"""The result of one check of `sgl-mlx doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sgl_mlx.errors import SglError

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """The result of one check; `detail` says what was found and, unless ok, how to fix it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def checked(name: str, check: Callable[[], Check]) -> Check:
    """Run `check` and return its result.

    An `SglError`, ImportError, OSError or RuntimeError becomes a failed check called `name`.
    """
    try:
        return check()
    except (SglError, ImportError, OSError, RuntimeError) as error:
        return Check(name, "fail", str(error))


def gib(size: int) -> str:
    """Format a number of bytes as GiB."""
    return f"{size / GIB:,.2f} GiB" if size < 10 * GIB else f"{size / GIB:,.1f} GiB"
