"""Opening of pictures as upright 8-bit RGB.

The size is checked in the header, before anything is decoded. The camera's rotation (EXIF) is
applied and transparency is shown on white, as in transformers' image processors.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sgl_mlx.bounds import local_path
from sgl_mlx.errors import ImageError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.gif import SIGNATURE, Gif

Source = str | Path | bytes | bytearray | Image.Image
"""Picture given as a path, a `data:` URL, the bytes of a file, or an open Pillow image."""

DEFAULT = Limits()

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Formats that are opened; some other formats would start programs (EPS) or read other files."""

_SHOWN = 80
"""Maximum number of characters of a source that an error shows."""


def open_image(source: Source, limits: Limits = DEFAULT) -> Image.Image:
    """Open a picture, or the first frame of an animation, as upright RGB.

    Raises:
        ImageError: when the picture cannot be found, read or decoded, or is empty.
        LimitError: when it has too many bytes or pixels.
    """
    with closing(open_frames(source, limits)) as frames:
        return next(frames)


def open_frames(source: Source, limits: Limits = DEFAULT) -> Generator[Image.Image, None, None]:
    """Yield every frame of an animation, or the single picture, as upright RGB.

    `info["duration"]` of a frame has its duration in milliseconds, if the file states one.

    Raises:
        ImageError, LimitError: as `open_image`, when the frame at fault is reached.
    """
    name = name_of(source)
    if isinstance(source, Image.Image):
        check_size(source.width, source.height, name, limits)
        yield _decode(source, name)
        return
    with _identify(source, name, limits) as image:
        check_size(image.width, image.height, name, limits)
        yield _decode(image, name)
        frame = 1
        while _seek(image, frame, name):
            check_size(image.width, image.height, name, limits)  # it may be larger than the first
            yield _decode(image, name)
            frame += 1


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    """Raise `ImageError` for a picture without pixels, `LimitError` for one with too many."""
    if width * height == 0:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    size = f"{name} is {width:,} x {height:,} pixels, scale it down first"
    limits.check("max_image_pixels", width * height, size)


def name_of(source: Source) -> str:
    """Describe a source for error messages; a long path or URL is shortened."""
    if isinstance(source, bytes | bytearray | Image.Image):
        return "the picture"
    text = str(source)
    if len(text) > _SHOWN:  # a path is told by its end, a data: URL by its beginning
        text = f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
    return repr(text)


def _identify(source: str | Path | bytes | bytearray, name: str, limits: Limits) -> Image.Image:
    """Open a picture, reading only its header.

    Raises:
        ImageError: for a format that is not in `_FORMATS`, or a broken or too large picture.
    """
    stream = open_stream(source, name, limits)
    try:
        if begins_with(stream, SIGNATURE):
            return Gif(stream, lambda width, height: check_size(width, height, name, limits))
        return Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError as e:
        raise ImageError(
            f"{name} is no picture in a format this reads: {', '.join(_FORMATS)}"
        ) from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise LimitError(
            "max_image_pixels", f"{name} is too large: {e}; {limits.told('max_image_pixels')}"
        ) from e
    except (ImageError, LimitError):
        raise
    except Exception as e:  # Pillow's plugins raise whatever a broken file leads them into
        raise ImageError(f"{name} cannot be read: {e or type(e).__name__}") from e


def begins_with(stream: Path | BytesIO, signature: bytes) -> bool:
    """Return True if the file or the bytes begin with `signature`."""
    if isinstance(stream, BytesIO):
        return stream.getvalue().startswith(signature)
    with stream.open("rb") as file:
        return file.read(len(signature)) == signature


def open_stream(
    source: str | Path | bytes | bytearray, name: str, limits: Limits
) -> Path | BytesIO:
    """Return the path of an existing file, or a stream of bytes given directly or in a `data:` URL.

    Args:
        name: what errors call the source.

    Raises:
        ImageError: when there is no such file, the `data:` URL is broken, the URL points to the
            network, or `source` is of another type.
        LimitError: when there are too many bytes.
    """

    def check(size: int) -> None:
        limits.check("max_image_bytes", size, f"{name} has {size:,} bytes")

    if isinstance(source, bytes | bytearray):
        check(len(source))
        return BytesIO(source)
    if isinstance(source, str) and source.lstrip()[:5].lower() == "data:":
        source = source.strip()
    scheme = source.partition(":")[0].lower() if isinstance(source, str) else ""
    if scheme == "data":
        decoded = _data_url(str(source), name)
        check(len(decoded))
        return BytesIO(decoded)
    if scheme in ("http", "https"):
        raise ImageError(f"{name}: pictures are not fetched from the network; pass a file or bytes")
    if not isinstance(source, str | Path):
        raise _no_source(source)
    try:
        path = local_path(source)
        fault = _fault(path) if str(source) else "is an empty text"
    except (OSError, RuntimeError) as e:  # a name too long for a path, a home that is nobody's
        raise ImageError(f"{name} is no path: {type(e).__name__}") from e
    if fault:
        raise ImageError(f"{name} {fault}; a picture is a file, a data: URL or bytes")
    check(path.stat().st_size)
    return path


def _fault(path: Path) -> str:
    """Return the reason why there is nothing to read at a path; "" if there is something."""
    if path.is_dir():
        return "is a folder"
    if not path.is_file():
        return "does not exist"
    return "" if path.stat().st_size else "is an empty file"


def _no_source(given: object) -> ImageError:
    hint = "; PIL.Image.fromarray(array) makes one" if hasattr(given, "tolist") else ""
    hint = "; its read() gives bytes" if hasattr(given, "read") else hint
    kind = type(given).__name__
    return ImageError(f"a picture is a path, a data: URL, bytes or a PIL.Image, not {kind}{hint}")


def _data_url(url: str, name: str) -> bytes:
    """Decode a `data:` URL (RFC 2397); base64 may contain spaces but must be padded."""
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError(f"{name} is no data: URL: it has no comma before its data")
    raw = unquote_to_bytes(payload.encode("utf-8", "replace"))
    if not header.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as e:
        raise ImageError(f"{name} is no valid base64: {e}") from e


def _seek(image: Image.Image, frame: int, name: str) -> bool:
    """Move to a frame; returns False if there is none. Raises ImageError if it is damaged."""
    try:
        image.seek(frame)
    except EOFError:
        return False
    except (ImageError, LimitError):
        raise
    except Exception as e:  # Pillow's plugins raise anything, as in `_identify`
        raise ImageError(f"{name} is damaged at frame {frame}: {e or type(e).__name__}") from e
    return True


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        decoded = _to_rgb(ImageOps.exif_transpose(image))
    except (ImageError, LimitError):
        raise
    except Exception as e:  # Pillow's plugins raise anything, as in `_identify`
        raise ImageError(f"{name} is damaged or cut short: {e or type(e).__name__}") from e
    if duration := image.info.get("duration"):  # a picture shown on white loses its `info`
        decoded.info["duration"] = duration
    return decoded


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _to_8_bits(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Reduce a grey picture of 16 or 32 bits to 8 bits; other pictures stay as they are.

    16-bit greys keep their upper 8 bits. 32-bit greys, integer or float, have no fixed white, so
    their values decide. Values from 0 to 255 are taken as 8 bits, integers up to 65,535 as 16.
    Floats up to 1 are rejected, since white may be 1 or 255.

    Raises:
        ImageError: for other 32-bit greys; the message names their lowest and highest value.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values: np.ndarray[Any, np.dtype[Any]] = np.asarray(image)
    low, high = values.min(), values.max()
    is_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if is_16_bits or (image.mode == "I" and low >= 0 and 255 < high <= 0xFFFF):
        return Image.fromarray((values >> 8).astype(np.uint8))
    if low >= 0 and high <= 255 and (image.mode == "I" or high > 1):
        return Image.fromarray(values.astype(np.uint8))
    kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
    raise ImageError(
        f"a picture whose greys are {kind} from {low:g} to {high:g} does not tell which of them is "
        "white; save it with 8 or 16 bits"
    )
