"""JSON form of a prompt's parts, which `/v1/contexts` and its clients share.

| part | JSON |
|---|---|
| `Text` | a text |
| `Generated` | `{"generated": text, "token_ids": [...]}` |
| `Image` | `{"image_url": "data:..."}` |
| `Shift` | `{"shift": positions}` |
| `Parallel` | `{"parallel": [parts of a branch, ...]}` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sgl_mlx.bounds import shown
from sgl_mlx.core import Generated, Image, Parallel, Part, Prompt, Shift, Text
from sgl_mlx.errors import NotYetError, PromptError

_SHAPES = "a text or an object with generated, image_url, shift or parallel"


def encode(prompt: Iterable[Part], url_of: Callable[[Any], str]) -> list[Any]:
    """Return a prompt as a list of JSON values, one for each part.

    Args:
        url_of: returns the `data:` URL of a picture's source.

    Raises:
        NotYetError: the prompt has a video.
    """
    return [_encoded(part, url_of) for part in prompt]


def decode(given: Any, url_of: Callable[[str, Any], str], where: str = "parts") -> Prompt:
    """Return the prompt that a list of JSON values describes: the reverse of `encode`.

    Args:
        url_of: checks a picture's URL and returns it; called with the place of the field in the
            request, for errors, and the value of the field.
        where: the place of the parts in the request, for errors.

    Raises:
        PromptError: a value has no form of the table above; the message names the place.
    """
    if not isinstance(given, list):
        raise PromptError(f"{where} must be a list of parts, got {shown(given)}")
    return tuple(_decoded(part, url_of, f"{where}[{i}]") for i, part in enumerate(given))


def _encoded(part: Part, url_of: Callable[[Any], str]) -> Any:
    match part:
        case Text(text):
            return text
        case Generated(text, token_ids):
            return {"generated": text, "token_ids": list(token_ids)}
        case Image(source):
            return {"image_url": url_of(source)}
        case Shift(gap):
            return {"shift": gap}
        case Parallel(branches):
            return {"parallel": [encode(branch, url_of) for branch in branches]}
    raise NotYetError(
        f"a video ({part.source}) needs an in-process Engine; append single frames with image()"
    )


def _decoded(part: Any, url_of: Callable[[str, Any], str], where: str) -> Part:
    match part:
        case str():
            return Text(part)
        case {"generated": str() as text}:
            ids = part.get("token_ids", [])
            if not isinstance(ids, list) or not all(type(token) is int for token in ids):
                raise PromptError(f"{where}.token_ids must be a list of integers, got {shown(ids)}")
            return Generated(text, tuple(ids))
        case {"image_url": url}:
            return Image(url_of(f"{where}.image_url", url))
        case {"shift": int() as gap} if type(gap) is int and gap >= 0:
            return Shift(gap)
        case {"parallel": list() as branches}:
            return Parallel(
                tuple(
                    decode(branch, url_of, f"{where}.parallel[{i}]")
                    for i, branch in enumerate(branches)
                )
            )
    raise PromptError(f"{where} must be {_SHAPES}, got {shown(part)}")
