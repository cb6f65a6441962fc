"""The page of the API is what the docstrings say, and leaves nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_mlx.cli.api_reference import reference
from sgl_mlx.cli.docstrings import Docstring
from sgl_mlx.runtime.engine import Engine
from tests.runtime.conftest import write_toy

PAGE = Path(__file__).parent.parent.parent / "docs" / "api.md"


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run `make docs`"


def test_every_method_and_every_counter_of_an_engine_is_explained(tmp_path: Path) -> None:
    with Engine(str(write_toy(tmp_path)), disk_cache_dir=str(tmp_path / "disk")) as engine:
        stats = engine.get_server_info()["stats"]
    page = reference()
    methods = [name for name in dir(Engine) if not name.startswith("_")]
    calls = [name for name in methods if callable(getattr(Engine, name))]
    assert [name for name in stats if f"| `{name}` |" not in page] == []
    assert [name for name in calls if f"#### `{name}(" not in page] == []


def test_a_field_that_its_docstring_leaves_out_is_found() -> None:
    def documented() -> None:
        """Do it.

        Args:
            a, b: two things
                in two lines.
            c: one.

        Returns:
            Nothing.
        """

    found = Docstring.of(documented)
    assert (found.text, found.returns) == ("Do it.", "Nothing.")
    assert found.entries == dict.fromkeys("ab", "two things in two lines.") | {"c": "one."}
    with pytest.raises(KeyError):
        found.entries["d"]
