"""Prompts of requests that take one or several, as text or as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgl_mlx.server.errors import bad_value

OnePrompt = str | Sequence[int]


def listed_prompts(field: str, given: str | list[Any]) -> list[OnePrompt]:
    """Return the prompts of a field: one text or list of token ids, or a list of these.

    Args:
        field: name of the field, for errors.

    Raises:
        HttpError: the list is empty, or has another shape.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise bad_value(f"{field} is an empty list; send at least one text", field)
    if all(map(_is_id, given)):
        return [given]
    if all(isinstance(p, str) for p in given):
        return given
    if all(isinstance(p, list) and p and all(map(_is_id, p)) for p in given):
        return given
    raise bad_value(
        f"{field} must be a text, a list of texts, a list of token ids or a list of such lists",
        field,
    )


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
