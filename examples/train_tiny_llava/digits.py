"""Reads the digit on a scan, with the tiny LLaVA of this folder and the default language model.

Without arguments it reads 400 held-out scans; with files (`digits.py a.png b.png`) it reads those.
A picture must show one digit alone, bright on black, filling a square: the model learnt scans of
8 x 8 grey pixels, 0 for paper and 255 for ink, to which every picture is scaled.
"""

import random
import sys
import time
from collections.abc import Iterator, Sequence
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


def open_scan(path: str) -> Image.Image:
    """Open a picture as the model knows scans; raises `ValueError` for one it would misread."""
    grey = Image.open(path).convert("L")
    if not 0.5 <= grey.width / grey.height <= 2:
        raise ValueError(
            f"{path} is {grey.width} x {grey.height}: cut it to a square around a digit"
        )
    values = np.asarray(grey, np.float32)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    if np.median(border) > 127:
        raise ValueError(f"{path} is dark on bright: invert it, the ink must be bright on black")
    if values.max() - values.min() < 64:
        raise ValueError(
            f"{path} shows no digit: its greys are {values.min():g} to {values.max():g}"
        )
    return grey.resize((8, 8), Image.Resampling.BOX)


def read_files(paths: Sequence[str]) -> None:
    """Print the digit on each picture."""
    scans = [open_scan(path) for path in paths]
    with sgl.Engine(mmproj=str(CHECKPOINT)) as engine:
        for path, scan in zip(paths, scans, strict=True):
            print(f"{path}: {read_digit.run(scan, backend=engine)['digit']}")


def held_out() -> Iterator[tuple[Image.Image, str]]:
    """Scans of 8 x 8 that the training did not see, each with what was written."""
    kept = np.load(FOLDER / "held_out.npz")
    for scan, digit in zip(kept["scans"], kept["digits"], strict=True):
        yield Image.fromarray(scan), str(digit)


def share_read(scans: Sequence[Image.Image], written: Sequence[str], engine: sgl.Engine) -> float:
    """Return the share of scans that are read right."""
    rows = [{"scan": scan} for scan in scans]
    states = read_digit.run_batch(rows, backend=engine, num_threads=32)
    pairs = zip(states, written, strict=True)
    return sum(state["digit"] == digit for state, digit in pairs) / len(scans)


def read_held_out() -> None:
    """Print how many of the held-out scans are read right."""
    started = time.perf_counter()
    scans, written = zip(*held_out(), strict=True)
    with sgl.Engine(mmproj=str(CHECKPOINT)) as engine:
        right = share_read(scans, written, engine)
        print(f"{right:.1%} of {len(scans)} held-out scans read right")
        shuffled = random.Random(0).sample(scans[:100], 100)
        right = share_read(shuffled, written[:100], engine)
        print(f"{right:.1%} with 100 of the scans shuffled against what is written")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    try:
        read_files(sys.argv[1:]) if sys.argv[1:] else read_held_out()
    except (OSError, ValueError) as error:
        sys.exit(str(error))
