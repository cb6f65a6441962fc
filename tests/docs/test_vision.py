"""The example in docs/vision.md runs as it stands, on a toy model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.models.vision.conftest import read_golden, write_golden
from tests.models.vision.pictures import picture

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = write_golden(tmp_path / "model", read_golden("llava"))
    exec(compile(block, PAGE.name, "exec"), {"folder": folder, "picture": picture(30, 40)})
    assert capsys.readouterr().out.startswith("16 (1, 28, 28, 3) ")
