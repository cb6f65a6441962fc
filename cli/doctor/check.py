"""One row of `sgl-mlx doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sgl_mlx.errors import SglError

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One row; `detail` says what was found and, unless ok, how to mend it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def checked(name: str, check: Callable[[], Check]) -> Check:
    """Make a check; one that raises an error becomes a failing row."""
    try:
        return check()
    except (SglError, ImportError, OSError, RuntimeError) as error:
        return Check(name, "fail", str(error))


def gib(size: int) -> str:
    """Write bytes as GiB."""
    return f"{size / GIB:,.2f} GiB" if size < 10 * GIB else f"{size / GIB:,.1f} GiB"
