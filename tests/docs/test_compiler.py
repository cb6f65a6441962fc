"""The examples in docs/compiler.md run as they stand, and print what the page says they print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.testing import ScriptedBackend

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "compiler.md").read_text(encoding="utf-8")
PROGRAM = (DOCS / "letter.py").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.chdir(tmp_path)
    scores = {" books": -1, " good": -1, " yes": -1}
    sgl.set_default_backend(ScriptedBackend(" a scripted answer", logprobs=scores))
    yield
    sgl.set_default_backend(None)


@pytest.mark.usefixtures("_scripted")
def test_the_examples_print_what_the_page_shows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    namespace: dict[str, Any] = {}
    shown = 0
    for number, (code, expected) in enumerate(BLOCK.findall(PAGE), 1):
        if code in PROGRAM:
            continue  # an excerpt of the program itself
        # A file, because programs are traced from their source.
        file = tmp_path / f"example{number}.py"
        file.write_text(code, encoding="utf-8")
        exec(compile(code, file.name, "exec"), namespace)
        printed = capsys.readouterr().out
        if expected:
            assert printed == expected, f"example {number}"
            shown += 1
    assert shown == len(re.findall(r"^```text$", PAGE, re.MULTILINE)) == 4


def test_the_page_shows_the_program_as_it_is() -> None:
    assert sum(code in PROGRAM for code, _ in BLOCK.findall(PAGE)) == 1
