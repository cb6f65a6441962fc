"""The examples in docs/language.md run as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.testing import ScriptedBackend

PAGE = Path(__file__).parents[2] / "docs" / "language.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def _scripted() -> Iterator[None]:
    sgl.set_default_backend(ScriptedBackend(" a scripted answer", logprobs={"good": -1, "B": -1}))
    yield
    sgl.set_default_backend(None)


@pytest.mark.usefixtures("_scripted")
def test_the_examples_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS) >= 7
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"{PAGE.name}, example {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "good\n" in printed
    assert "B\n" in printed
    assert printed.endswith(" a scripted answer")
