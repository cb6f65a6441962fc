"""`sgl-mlx compile` on a scripted model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from sgl_mlx.compiler.tracing import breaks
from sgl_mlx.testing import ScriptedBackend

PROGRAMS = """
import sgl_mlx as sgl

@sgl.function
def whole(s, topic):
    s += "Write about " + topic + ". Be brief and use plain words.\\n"
    s += sgl.gen("text", max_tokens=8)

@sgl.function
def part(s, topic):
    s += topic + sgl.gen("yes", max_tokens=3)
    if s["yes"] == "yes":
        s += sgl.gen("more", max_tokens=3)

@sgl.function
def article(s, topic):
    s += sgl.user("Article:\\n" + topic + "\\n\\nWrite in plain words. Answer in English.")
    s += sgl.assistant(sgl.gen("text", max_tokens=8))
"""

Sgl = Callable[..., Result]
Use = Callable[..., ScriptedBackend]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "programs.py"
    path.write_text(PROGRAMS)
    return path


def test_by_itself_it_explains(sgl: Sgl, file: Path) -> None:
    assert "compiled as a whole" in sgl("compile", f"{file}:whole").output


def test_explain_names_the_line_that_ends_the_graph(sgl: Sgl, file: Path) -> None:
    number = 1 + PROGRAMS.splitlines().index('    if s["yes"] == "yes":')
    shown = sgl("compile", f"{file}:part", "--explain").output
    assert f"programs.py:{number}: " in shown
    assert 'if s["yes"] == "yes":' in shown
    found = json.loads(sgl("compile", f"{file}:part", "--explain", "--json").stdout)["explain"]
    assert found["compiled"] == "part"
    assert found["remarks"][0]["line"] == number


@pytest.mark.parametrize(
    ("how", "start"),
    [("tree", "whole(topic"), ("dot", "digraph"), ("json", "{")],
)
def test_graph_in_each_form(sgl: Sgl, file: Path, how: str, start: str) -> None:
    shown = sgl("compile", f"{file}:whole", "--graph", how).output
    assert shown.startswith(start)
    assert "Write about" in shown


def test_run_gives_what_the_interpreter_gives(sgl: Sgl, use: Use, file: Path) -> None:
    arguments = ("--arg", "topic=tea", "--json")
    use("plain")
    plain = json.loads(sgl("run", f"{file}:whole", *arguments).stdout)
    use("plain")
    compiled = json.loads(sgl("compile", f"{file}:whole", "--run", *arguments).stdout)
    assert {**compiled, "stats": None} == {**plain, "stats": None}


def test_a_saved_graph_runs_without_its_program(
    sgl: Sgl, use: Use, file: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "whole.json"
    assert sgl("compile", f"{file}:whole", "--save", str(graph)).exit_code == 0
    file.unlink()
    use("good")
    done = sgl("compile", str(graph), "--run", "--arg", "topic=tea", "--json")
    assert json.loads(done.stdout)["variables"] == {"text": "good"}


LOOKS_INTO = """
import json, re, random, math, datetime, textwrap
import sgl_mlx as sgl

def helper(text):
    return {call}

@sgl.function
def f(s, q):
    s += q + sgl.gen("a")
    s += str(helper(s["a"]))
"""
CALLS = [
    "re.search('a', text).group()",
    "re.fullmatch('a', text)",
    "json.loads(text)['a']",
    "json.load(open(text))",
    "math.sqrt(float(text))",
    "random.choice([text])",
    "datetime.date.fromisoformat(text)",
    "textwrap.wrap(text)",
    "textwrap.shorten(text, 9)",
    "f'{float(text):.2f}'",
    "sorted(text, key=lambda c: ord(c))",
    "dict([text.split('=')])",
    "open(text).read()",
    "(lambda x: int(x))(text)",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("installed", [False, True])
def test_a_break_is_named_at_the_users_line(
    sgl: Sgl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, installed: bool
) -> None:
    """Wherever the trace ends, and even if the program itself lies in a library's folder."""
    path = tmp_path / "mine.py"
    path.write_text(LOOKS_INTO.format(call=call))
    if installed:
        folders = (*breaks._library_folders(), f"{tmp_path}/")
        monkeypatch.setattr(breaks, "_library_folders", lambda: folders)
    graph = tmp_path / "f.json"
    done = sgl("compile", str(path), "--explain", "--save", str(graph), "--json")
    document = json.loads(done.stdout)
    (remark,) = document["explain"]["remarks"]
    assert remark["file"] == str(path)
    assert remark["line"] == (11 if installed else 6)
    assert document["needs_program"]
    assert "cannot be run on its own" in done.stderr
    assert f"mine.py:{remark['line']}" in done.stderr


def test_reorder_moves_the_instructions_ahead_of_the_argument(sgl: Sgl, file: Path) -> None:
    def places(*words: str) -> tuple[int, int]:
        shown = sgl("compile", f"{file}:article", "--graph", "json", *words).output
        return shown.index("plain words"), shown.index("Article:")

    plain, moved = places(), places("--reorder", "rules")
    assert plain[0] > plain[1]
    assert moved[0] < moved[1]


def test_a_tampered_graph_is_one_clear_error(sgl: Sgl, file: Path, tmp_path: Path) -> None:
    graph = tmp_path / "whole.json"
    sgl("compile", f"{file}:whole", "--save", str(graph))
    graph.write_text(graph.read_text().replace("plain", "fancy"))
    done = sgl("compile", str(graph), "--run", "--arg", "topic=tea")
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run"], "needs topic"),
        (["--run", "--arg", "tea=1"], "takes no tea"),
        (["--graph", "cake"], "'cake'"),
        (["--arg", "topic"], "NAME=VALUE"),
    ],
)
def test_wrong_words_are_usage_errors(
    sgl: Sgl, use: Use, file: Path, words: list[str], message: str
) -> None:
    use("x")
    done = sgl("compile", f"{file}:whole", *words)
    assert done.exit_code == 2
    assert message in done.output


def test_a_program_for_sglang_compiles_with_as_sglang(sgl, tmp_path) -> None:
    path = tmp_path / "theirs.py"
    path.write_text(
        "import sglang as sgl\n@sgl.function\ndef f(s, q):\n    s += 'Q: ' + q + sgl.gen('a')\n"
        "if __name__ == '__main__':\n    raise SystemExit('the main part ran')\n"
    )
    result = sgl("compile", "--as-sglang", str(path), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["explain"]["compiled"] == "whole"
