"""The videos of the goldens, by name, and a vocabulary of characters that spells their times."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

from tests.models.vision.pictures import film


class Film(NamedTuple):
    """A video of `total` frames, of which `count` are taken."""

    height: int
    width: int
    total: int
    count: int
    milliseconds: int

    def frames(self) -> list[Image.Image]:
        return film(self.height, self.width, self.total)

    def indices(self) -> list[int]:
        return [i * self.total // self.count for i in range(self.count)]


FILMS = {
    "pairs": Film(40, 60, 8, 4, 250),
    "odd": Film(24, 48, 7, 3, 400),
    "long": Film(16, 24, 12, 12, 1000),
    "large": Film(90, 130, 4, 4, 500),
}
"""The last pair of "odd" has one frame; the times of "long" exceed its edges in Qwen2.5-VL."""

SETTINGS = {
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 384, "longest_edge": 4000},
    "image_mean": [0.5, 0.4, 0.5],
    "image_std": [0.5, 0.5, 0.6],
}
"""Content of `video_preprocessor_config.json`."""

CHARACTERS = "<>.0123456789 second"
FIRST = 20
"""Token of the first of `CHARACTERS`."""


def spelled(text: str) -> list[int]:
    """Return the tokens of a text, one for each character."""
    return [FIRST + CHARACTERS.index(character) for character in text]
