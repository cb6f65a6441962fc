"""Request fields of other servers that would change the answer, and that this server lacks.

Unknown fields are ignored. A field that is declared as `Refused` is an error instead, unless its
value asks for nothing: otherwise the answer would silently not be what the request asked for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, get_type_hints

from sgl_mlx.server.errors import bad_value

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class Refused:
    """Mark of a request field that is not supported, for `Annotated`.

    Attributes:
        advice: what the client can do instead; the end of the error message.
        harmless: values that ask for nothing, besides null, false and empty values.
    """

    advice: str
    harmless: tuple[Any, ...] = ()


def check_refused(body: object) -> None:
    """Check that no field of a decoded body that is marked as `Refused` asks for something.

    Raises:
        HttpError: a field does; the error names it.
    """
    for name, mark in _marks(cast(Hashable, type(body))).items():
        if getattr(body, name) not in (*_NOTHING, *mark.harmless):
            raise bad_value(f"{name} is not supported; {mark.advice}", name)


@cache
def _marks(shape: Hashable) -> dict[str, Refused]:
    """Return the marks of a class's fields, by the fields' names."""
    hints = get_type_hints(shape, include_extras=True)
    return {
        name: mark
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Refused)
    }
