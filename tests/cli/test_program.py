"""Program files: which program is meant, and whose line an error shows."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("target", ["", ":a", ":again", ":other", ":fast"])
def test_an_alias_is_no_second_program(sgl, use, program, target: str) -> None:
    use()
    path = program(
        "\n@sgl.function\ndef a(s):\n    s += 'A'\n\nagain = other = a\nfast = a.compile()\n"
    )
    assert sgl("run", path + target).stdout == "A\n"


def test_a_program_with_bound_arguments_is_another_program(sgl, use, program) -> None:
    use()
    path = program("\n@sgl.function\ndef a(s, x='A'):\n    s += x\n\nb = a.bind(x='B')\n")
    assert "several programs (a, b)" in sgl("run", path).stderr
    assert sgl("run", path + ":b").stdout == "B\n"


def test_an_error_in_a_row_of_a_batch_shows_the_rows_line_and_index(sgl, use, program) -> None:
    use()
    path = program(
        "\n@sgl.function\ndef row(s, n):\n    s += str(1 // n)\n"
        "\n@sgl.function\ndef main(s):\n    row.run_batch([[2], [0], [1]])\n"
    )
    result = sgl("run", path)
    assert result.exit_code == 1
    assert "s += str(1 // n)" in result.stderr
    assert "row.run_batch([[2], [0], [1]])" in result.stderr
    assert "Row 1: ZeroDivisionError" in result.stderr


def test_a_program_with_keywords_of_any_name_takes_any_argument(sgl, use, program) -> None:
    use()
    path = program("\n@sgl.function\ndef main(s, q, *rest, **more):\n    s += f'{q}{rest}{more}'\n")
    assert sgl("run", path, "--arg", "q=1", "--arg", "z=2").stdout == "1(){'z': 2}\n"
    assert "needs q; it takes: q\n" in sgl("run", path, "--arg", "z=2").stderr


@pytest.mark.parametrize("name", ["stream", "backend", "use_thread"])
@pytest.mark.parametrize("command", [["run"], ["compile", "--run"]])
def test_a_parameter_that_run_keeps_for_itself_is_named(
    sgl, use, program, name: str, command: list[str]
) -> None:
    use()
    path = program(f"\n@sgl.function\ndef main(s, {name}=1):\n    s += 'x'\n")
    result = sgl(*command, path, "--arg", f"{name}=2")
    assert result.exit_code == 2
    assert f"run() has an option {name} of its own" in result.stderr
