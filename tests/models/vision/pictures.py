"""Pictures by name, the same in the goldens' script and in the tests."""

from __future__ import annotations

import numpy as np
from PIL import Image

SEVERAL = [(40, 60), (31, 31), (61, 33)]
FRAMES = [(40, 60), (41, 60), (40, 61)]


def picture(height: int, width: int) -> Image.Image:
    """Noise over a slope, so that neither resampling nor rotation goes unnoticed."""
    draw = np.random.default_rng((height, width))
    slope = np.linspace(0, 160, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    noise = draw.integers(0, 96, (height, width, 3))
    return Image.fromarray((slope + noise).astype(np.uint8))


def pictures(case: str) -> list[Image.Image]:
    """Make the pictures of a case: "HEIGHTxWIDTH", "several", or the frames of "video"."""
    if case in ("several", "video"):
        return [picture(*size) for size in (SEVERAL if case == "several" else FRAMES)]
    height, _, width = case.partition("x")
    return [picture(int(height), int(width))]


def film(height: int, width: int, count: int) -> list[Image.Image]:
    """Make a video's frames: a picture that moves to the right, and around."""
    still = np.asarray(picture(height, width))
    return [Image.fromarray(np.roll(still, 5 * i, axis=1)) for i in range(count)]
