"""Options of a request besides its prompt and sampling parameters."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, cast

from sgl_mlx.errors import InvalidParamsError


class RequestKeywords(TypedDict, total=False):
    """Keywords of `Engine.generate`, `async_generate` and `submit`.

    Attributes:
        rid: the request's id, for `Engine.abort` and as `meta_info["id"]`; one must not be in
            flight twice. For a list of prompts a list. Sample i of several has the id `rid-i`.
        priority: requests of a higher one are admitted first; 0 by default.
        timeout: seconds after which the request is aborted.
        deadline: when it is aborted instead, on `time.monotonic`'s scale.
    """

    rid: str | Sequence[str] | None
    priority: int
    timeout: float | None
    deadline: float | None


@dataclass(frozen=True)
class RequestOptions:
    """The checked keywords of one request; see `RequestKeywords`."""

    rid: str | None = None
    priority: int = 0
    deadline: float | None = None

    @classmethod
    def each(cls, given: RequestKeywords, count: int, single: bool) -> list[RequestOptions]:
        """Return the options of `count` requests, each with an id.

        Raises:
            InvalidParamsError: naming the keyword, its value and what would be right.
        """
        shared = cls(None, _priority(given.get("priority")), _deadline(given))
        rid = given.get("rid")
        if rid is None:
            return [replace(shared, rid=uuid.uuid4().hex) for _ in range(count)]
        rids = [rid] if single else rid
        listed = isinstance(rids, (list, tuple)) and len(rids) == count
        if not listed or not all(isinstance(r, str) and r for r in rids):
            wanted = "a text" if single else f"a list of {count} texts"
            raise InvalidParamsError(f"rid must be {wanted}, not empty, got {rid!r}")
        return [replace(shared, rid=str(r)) for r in rids]


def take_keywords(options: dict[str, Any]) -> RequestKeywords:
    """Take a request's keywords out of `options`, which leaves the sampling parameters."""
    names = RequestKeywords.__annotations__.keys() & options.keys()
    return cast(RequestKeywords, {name: options.pop(name) for name in names})


def _priority(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**31:
        raise InvalidParamsError(f"priority must be an integer of 32 bits, got {value!r}")
    return value


def _deadline(given: Mapping[str, Any]) -> float | None:
    timeout, deadline = given.get("timeout"), given.get("deadline")
    if timeout is not None and deadline is not None:
        raise InvalidParamsError("timeout and deadline exclude each other; give one")
    for name, value in (("timeout", timeout), ("deadline", deadline)):
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 1e12 or math.isnan(value):
            raise InvalidParamsError(f"{name} must be a positive number of seconds, got {value!r}")
    return deadline if timeout is None else time.monotonic() + float(timeout)
