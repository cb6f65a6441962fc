"""Lines of code are lines with code on them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sgl_mlx.benchmarks.loc import lines_of_code, ours
from sgl_mlx.cli.commands import main

SOURCE = '''
"""About the module,
over two lines."""

import json  # counts


# does not count
def spell(value):
    """About the function."""

    text = """counts,

    in all its lines"""
    return json.dumps(
        [value, text],
    )


NUMBER = 3
"""About the number."""
'''


def test_blank_lines_comments_and_docstrings_do_not_count() -> None:
    assert lines_of_code(SOURCE) == 1 + 1 + 3 + 3 + 1
    assert lines_of_code("") == lines_of_code('"""About."""\n# nothing\n') == 0


def test_what_is_no_python_is_refused() -> None:
    with pytest.raises(SyntaxError):
        lines_of_code("def spell(:\n")


def test_the_command_ends_with_one_line_of_json_beside_the_quoted_figures() -> None:
    shown = CliRunner().invoke(main, ["bench", "loc"])
    *table, last = shown.output.splitlines()
    assert any("quoted" in line and "91" in line and "206" in line for line in table), shown.output
    document = json.loads(last)
    assert document["article_analysis"] == ours().to_dict()
    assert document["article_analysis"]["ratio"] > 1
    only = CliRunner().invoke(main, ["bench", "loc", "--json"])
    assert json.loads(only.output) == document
