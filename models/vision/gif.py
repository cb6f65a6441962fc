"""GIFs read by Pillow, with the size of each frame checked before memory is allocated.

Pillow itself allocates a frame as soon as it has read the frame's header, up to its own limit of
179 megapixels.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import GifImagePlugin

SIGNATURE = b"GIF8"

Check = Callable[[int, int], None]
"""Function that takes a width and a height and raises if they are too large."""


class Gif(GifImagePlugin.GifImageFile):
    """GIF that calls `check` with a frame's width and height before allocating the frame."""

    def __init__(self, stream: Path | BytesIO, check: Check) -> None:
        self._check = check
        super().__init__(stream)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_size" and value != (0, 0):  # Pillow's value before the header is read
            assert isinstance(value, tuple)
            self._check(*value)
        super().__setattr__(name, value)
