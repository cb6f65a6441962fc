"""Which digit is on a scan: the tiny LLaVA of this folder beside the default language model."""

import random
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


def held_out() -> Iterator[tuple[Image.Image, str]]:
    """Scans of 8 x 8 that the training did not see, each with what was written."""
    kept = np.load(FOLDER / "held_out.npz")
    for scan, digit in zip(kept["scans"], kept["digits"], strict=True):
        yield Image.fromarray(scan), str(digit)


def share_read(scans: Sequence[Image.Image], written: Sequence[str], engine: sgl.Engine) -> float:
    """How many of the scans are read as what was written."""
    rows = [{"scan": scan} for scan in scans]
    states = read_digit.run_batch(rows, backend=engine, num_threads=32)
    pairs = zip(states, written, strict=True)
    return sum(state["digit"] == digit for state, digit in pairs) / len(scans)


if __name__ == "__main__":
    started = time.perf_counter()
    scans, written = zip(*held_out(), strict=True)
    with sgl.Engine(mmproj=str(CHECKPOINT)) as engine:
        right = share_read(scans, written, engine)
        print(f"{right:.1%} of {len(scans)} held-out scans read right")
        shuffled = random.Random(0).sample(scans[:100], 100)
        right = share_read(shuffled, written[:100], engine)
        print(f"{right:.1%} with 100 of the scans shuffled against what is written")
    print(f"{time.perf_counter() - started:.0f} s in all")
