from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from sgl_mlx.cli.limits_reference import reference
from sgl_mlx.limits import Limits

PAGE = Path(__file__).parent.parent.parent / "docs" / "limits.md"


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run `make docs`"


def test_every_limit_is_in_the_table() -> None:
    page = reference()
    assert [f.name for f in fields(Limits) if f"\n| `{f.name}` | " not in page] == []
