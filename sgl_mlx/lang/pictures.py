"""Pictures in prompts: where templates put them, and how OpenAI's and SGLang's protocols do."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from sgl_mlx.core import Generated, Image, Parallel, Part, Prompt, Text, Video
from sgl_mlx.errors import ImageError, NotYetError

MARK = "<image>"


def around(image_token: str) -> tuple[str, str, str]:
    """What a template writes before a picture, in its place, and after it."""
    before, mark, after = image_token.partition(MARK)
    return (before, mark, after) if mark else ("", image_token, "")


def has_pictures(prompt: Iterable[Part]) -> bool:
    return any(
        isinstance(part, (Image, Video))
        or (isinstance(part, Parallel) and any(map(has_pictures, part.branches)))
        for part in prompt
    )


def flat_text(prompt: Iterable[Part], mark: str) -> str:
    """All text, with `mark` for each picture; a `Parallel`'s branches one after another."""
    pieces = []
    for part in prompt:
        if isinstance(part, (Text, Generated)):
            pieces.append(part.text)
        elif isinstance(part, (Image, Video)):
            pieces.append(mark)
        elif isinstance(part, Parallel):
            pieces.extend(flat_text(branch, mark) for branch in part.branches)
    return "".join(pieces)


def data_urls(prompt: Iterable[Part]) -> list[str]:
    """Every picture in order, for a server. Raises as `data_url`, and for videos."""
    found = []
    for part in prompt:
        if isinstance(part, Image):
            found.append(data_url(part.source))
        elif isinstance(part, Video):
            raise NotYetError(
                f"a video ({part.source}) needs an in-process Engine; append single frames with "
                "image() for other backends"
            )
        elif isinstance(part, Parallel):
            found += [url for branch in part.branches for url in data_urls(branch)]
    return found


def data_url(source: Any) -> str:
    """A picture as a `data:` URL; URLs stay as they are.

    Raises:
        ImageError: when there is no such file, or it is no picture.
    """
    if isinstance(source, str) and source.startswith(("data:", "http://", "https://")):
        return source
    if isinstance(source, Pillow.Image):
        buffer = BytesIO()
        source.save(buffer, "PNG")
        return _encoded(buffer.getvalue(), "image/png")
    try:
        content = source if isinstance(source, bytes) else Path(source).expanduser().read_bytes()
        with Pillow.open(BytesIO(content)) as picture:
            return _encoded(content, picture.get_format_mimetype() or "image/png")
    except (OSError, TypeError, ValueError) as e:
        shown = f"{len(source)} bytes" if isinstance(source, bytes) else repr(source)
        raise ImageError(f"image {shown} cannot be read: {e}") from e


def openai_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn in OpenAI's form: text alone is a string, with pictures it is a list."""
    content = message["content"]
    return {**message, "content": content if isinstance(content, str) else openai_content(content)}


def openai_content(parts: Prompt) -> list[dict[str, Any]]:
    """Raises as `data_urls`."""
    content: list[dict[str, Any]] = []
    for part in parts:
        content += [
            {"type": "image_url", "image_url": {"url": url}} for url in data_urls((part,))
        ] or [{"type": "text", "text": flat_text((part,), "")}]
    return [item for item in content if item.get("text") != ""]


def _encoded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
