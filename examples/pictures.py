"""Several pictures in one program: each is looked at in its own fork, all at the same time.

The tiny LLaVA of this folder reads scanned digits, bright ink on black, 8 x 8 pixels each (see
train_tiny_llava/digits.py for pictures of your own):
sgl-mlx run examples/pictures.py --mmproj examples/train_tiny_llava/checkpoint
"""

from pathlib import Path

import sgl_mlx as sgl

FOLDER = Path(__file__).parent
SCANS = sorted((FOLDER / "scans").glob("*.png"))
DIGITS = [str(digit) for digit in range(10)]


@sgl.function
def read_year(s, scans=SCANS):
    forks = s.fork(len(scans))
    for fork, scan in zip(forks, scans, strict=True):
        fork += sgl.user(sgl.image(scan) + "Which digit is this?")
        fork += sgl.assistant(sgl.select("digit", DIGITS))
    s += "The scans say " + "".join(fork["digit"] for fork in forks) + "."


if __name__ == "__main__":
    with sgl.Engine(mmproj=str(FOLDER / "train_tiny_llava" / "checkpoint")) as engine:
        print(read_year.run(backend=engine).text())
