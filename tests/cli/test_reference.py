from __future__ import annotations

from pathlib import Path

from sgl_mlx.cli.reference import reference

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run `make docs`"


def test_every_option_says_what_it_is_for() -> None:
    lines = [line for line in reference().splitlines() if line.startswith("  -")]
    assert [line for line in lines if not line.split("  ", 2)[2:] and len(line) < 30] == []
