"""Pictures in prompts: their placeholders in chat templates, and their encoding for HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from PIL import Image as Pillow

from sgl_mlx.bounds import local_path
from sgl_mlx.core import Generated, Image, Parallel, Part, Prompt, Text, Video
from sgl_mlx.errors import ImageError, NotYetError

_ADDRESSES = ("data:", "http://", "https://")
_BYTES = (bytes, bytearray)
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")

MARK = "<image>"


def around(image_token: str) -> tuple[str, str, str]:
    """Split a template's image token into `(text before, placeholder, text after)`.

    The placeholder is `<image>`, or the whole token if the token does not contain `<image>`.
    """
    before, mark, after = image_token.partition(MARK)
    return (before, mark, after) if mark else ("", image_token, "")


def has_pictures(prompt: Iterable[Part]) -> bool:
    return any(
        isinstance(part, (Image, Video))
        or (isinstance(part, Parallel) and any(map(has_pictures, part.branches)))
        for part in prompt
    )


def flat_text(prompt: Iterable[Part], mark: str) -> str:
    """Return the text of a prompt, with `mark` in place of each picture or video.

    The texts of parallel branches are joined in the order of the branches.
    """
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
    """Return the URLs of all pictures of a prompt in order, see `data_url`.

    Raises:
        ImageError: for a picture that cannot be read.
        NotYetError: for a video.
    """
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
    """Return a picture as a `data:` URL; `data:` and HTTP URLs are returned unchanged.

    Raises:
        ImageError: if there is no such file, or it is not a picture.
    """
    if isinstance(source, str) and source.strip()[:8].lower().startswith(_ADDRESSES):
        return source.strip()
    try:
        if isinstance(source, Pillow.Image):
            return _encoded(_png(source), "image/png")
        content = bytes(source) if isinstance(source, _BYTES) else local_path(source).read_bytes()
        with Pillow.open(BytesIO(content)) as picture:
            return _encoded(content, picture.get_format_mimetype() or "image/png")
    except (OSError, TypeError, ValueError, RuntimeError) as e:
        shown = f"{len(source)} bytes" if isinstance(source, _BYTES) else repr(source)
        raise ImageError(f"image {shown} cannot be read: {e}") from e


def openai_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn as OpenAI's message: its content is a string, or a list if it has pictures.

    Raises as `data_urls` does.
    """
    content = message["content"]
    return {**message, "content": content if isinstance(content, str) else openai_content(content)}


def openai_content(parts: Prompt) -> list[dict[str, Any]]:
    """Return the content of a turn as OpenAI's list of texts and images; raises as `data_urls`."""
    content: list[dict[str, Any]] = []
    for part in parts:
        content += [
            {"type": "image_url", "image_url": {"url": url}} for url in data_urls((part,))
        ] or [{"type": "text", "text": flat_text((part,), "")}]
    return [item for item in content if item.get("text") != ""]


def _png(picture: Pillow.Image) -> bytes:
    """Return a picture as a PNG file; colours that PNG does not have, such as CMYK, become RGB."""
    buffer = BytesIO()
    if picture.mode not in _PNG_MODES:
        picture = picture.convert("I;16" if picture.mode == "I" else "RGB")
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _encoded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
