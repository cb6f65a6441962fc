"""GIFs as Pillow reads them, refusing frames that are too large.

Pillow allocates a frame as soon as it has read the frame's header, up to its own limit (179
megapixels); here the size is checked before.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import GifImagePlugin

SIGNATURE = b"GIF8"

Check = Callable[[int, int], None]
"""Function that raises for a width and height that are too large."""


class Gif(GifImagePlugin.GifImageFile):
    """GIF that calls `check` with each size before allocating it."""

    def __init__(self, stream: Path | BytesIO, check: Check) -> None:
        self._check = check
        super().__init__(stream)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_size" and value != (0, 0):  # what every picture of Pillow's begins with
            assert isinstance(value, tuple)
            self._check(*value)
        super().__setattr__(name, value)
