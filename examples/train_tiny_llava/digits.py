"""Which digit is on a scan: the tiny LLaVA of this folder beside the default language model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import sgl_mlx as sgl

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
DIGITS = [str(digit) for digit in range(10)]


@sgl.function
def read_digit(s, scan):
    s += sgl.user(sgl.image(scan) + "Which digit is this?")
    s += sgl.assistant(sgl.select("digit", DIGITS))


def held_out() -> Iterator[tuple[Image.Image, str]]:
    """Scans of 8 x 8 that the training did not see, each with what was written."""
    kept = np.load(FOLDER / "held_out.npz")
    for scan, digit in zip(kept["scans"], kept["digits"], strict=True):
        yield Image.fromarray(scan), str(digit)


if __name__ == "__main__":
    with sgl.Engine(mmproj=str(CHECKPOINT)) as engine:
        for scan, digit in list(held_out())[:10]:
            state = read_digit.run(scan, backend=engine)
            print(f"written {digit}, read {state['digit']}")
