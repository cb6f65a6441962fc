from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

HELLO = """
@sgl.function
def hello(s, name, times=1):
    s += f"Hello {name}" * times + "!" + sgl.gen("reply")
"""
ECHO = """
@sgl.function
def echo(s, value):
    s += f"{type(value).__name__} {value!r}"
"""


def test_prints_the_text_of_the_program_and_its_counts(sgl, use, program) -> None:
    use(" Hi.")
    result = sgl("run", program(HELLO), "--arg", "name=Ada")
    assert result.stdout == "Hello Ada! Hi.\n"
    assert result.stderr == ("9 prompt tokens, 4 of them cached; 3 generated in 2 forward passes\n")


def test_streaming_prints_the_same_text(sgl, use, program) -> None:
    use(" Hi there, how are you?")
    result = sgl("run", program(HELLO), "--arg", "name=Ada", "--stream")
    assert result.stdout == "Hello Ada! Hi there, how are you?\n"


def test_json_is_one_document_whatever_the_program_prints(sgl, use, program) -> None:
    use(" Hi.")
    path = program(HELLO + "    print('working', s['reply'])\n")
    result = sgl("run", path, "--arg", "name=Ada", "--json", "--stream")
    document = json.loads(result.stdout)
    assert document["text"] == "Hello Ada! Hi."
    assert document["variables"] == {"reply": " Hi."}
    assert document["stats"]["prompt_tokens"] == 9
    assert "working  Hi." in result.stderr


def test_variables_of_branches_are_lists(sgl, use, program) -> None:
    use(" x")
    source = """
@sgl.function
def main(s):
    forks = s.fork(2)
    forks += sgl.gen("part")
    forks.join()
    s += sgl.gen()
"""
    document = json.loads(sgl("run", program(source), "--json").stdout)
    assert document["variables"] == {"part": [" x", " x"]}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("3", "int 3"),
        ("0.5", "float 0.5"),
        ("true", "bool True"),
        ('["a", 1]', "list ['a', 1]"),
        ('"3"', "str '3'"),
        ("plain text", "str 'plain text'"),
        ("a=b", "str 'a=b'"),
        ("", "str ''"),
        ("NaN", "str 'NaN'"),
        ("1, 2", "str '1, 2'"),
    ],
)
def test_values_that_are_json_are_read_and_others_are_text(
    sgl, use, program, text: str, read: str
) -> None:
    use()
    assert sgl("run", program(ECHO), "--arg", f"value={text}").stdout == read + "\n"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "hello needs name; it takes: name, times (optional)"),
        (["name=a", "nmae=b"], "hello takes no nmae; it takes: name, times (optional)"),
        (["name"], "expected NAME=VALUE, got 'name'"),
    ],
)
def test_wrong_arguments_name_what_the_program_takes(
    sgl, use, program, pairs: list[str], message: str
) -> None:
    backend = use()
    result = sgl("run", program(HELLO), *(x for pair in pairs for x in ("--arg", pair)))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert backend.calls == []


TWO = "\n@sgl.function\ndef a(s):\n    s += 'A'\n\n@sgl.function\ndef b(s):\n    s += 'B'\n"


def test_a_function_can_be_named(sgl, use, program) -> None:
    use()
    assert sgl("run", program(TWO) + ":b").stdout == "B\n"


def test_main_is_run_when_there_are_several(sgl, use, program) -> None:
    use()
    assert sgl("run", program(TWO.replace("def a", "def main"))).stdout == "A\n"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (TWO, "", "prog.py has several programs (a, b); name one: prog.py:a"),
        (TWO, ":c", "prog.py has no program 'c'; it has a, b"),
        ("x = 1", "", "prog.py has no program: decorate a function"),
        ("def plain(s): ...", ":plain", "prog.py has no program: decorate a function"),
    ],
)
def test_a_file_without_the_program_says_what_it_has(
    sgl, use, program, source: str, name: str, message: str
) -> None:
    use()
    result = sgl("run", program(source) + name)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_missing_file_is_a_usage_error(sgl, tmp_path) -> None:
    result = sgl("run", str(tmp_path / "gone.py"))
    assert result.exit_code == 2
    assert "there is no file" in result.stderr


def test_a_file_that_is_not_python_is_refused(sgl, use, program) -> None:
    use()
    result = sgl("run", program("", name="notes.txt"))
    assert result.exit_code == 1
    assert "notes.txt is no Python file" in result.stderr


def test_an_error_in_the_program_shows_only_the_frames_of_its_file(sgl, use, program) -> None:
    use()
    path = program("\n@sgl.function\ndef main(s):\n    s += str(1 // 0)\n")
    result = sgl("run", path)
    assert result.exit_code == 1
    assert result.stderr == (
        "Traceback (your program only):\n"
        f'  File "{path}", line 5, in main\n'
        "    s += str(1 // 0)\n" + _underline(result.stderr) + "ZeroDivisionError: "
        "integer division or modulo by zero\n"
    )


def _underline(text: str) -> str:
    """The `~~^^~~` line that Python 3.11 and newer print under the source."""
    return "".join(line for line in text.splitlines(keepends=True) if set(line.strip()) <= {*"~^"})


def test_misuse_of_the_language_is_shown_where_it_happened(sgl, use, program) -> None:
    use()
    result = sgl("run", program("\n@sgl.function\ndef main(s):\n    s += s['never']\n"))
    assert result.exit_code == 1
    assert "line 5, in main" in result.stderr
    assert "UnknownVariableError" in result.stderr
    assert "interpreter.py" not in result.stderr


def test_a_syntax_error_shows_its_line(sgl, use, program) -> None:
    use()
    result = sgl("run", program("def broken(:\n"))
    assert result.exit_code == 1
    assert "line 2" in result.stderr
    assert "SyntaxError" in result.stderr


def test_debug_shows_every_frame(sgl, use, program) -> None:
    use()
    result = sgl("--debug", "run", program("1 / 0"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_request_that_fails_is_an_error_of_ours(sgl, use, program) -> None:
    from sgl_mlx.errors import PromptError

    use([PromptError("the prompt is empty")])
    result = sgl("run", program("\n@sgl.function\ndef main(s):\n    s += sgl.gen('x')\n"))
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr


def test_programs_for_sglang_run_unchanged(sgl, use, tmp_path, monkeypatch) -> None:
    import sys

    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    backend = use(" yes")
    path = tmp_path / "theirs.py"
    path.write_text(
        "from sglang import function, gen\n"
        "@function\ndef ask(s, q):\n    s += q + gen('a', max_tokens=4)\n"
    )
    result = sgl("run", "--as-sglang", str(path), "--arg", "q=Really?")
    assert result.stdout == "Really? yes\n"
    assert backend.calls[0].params.max_new_tokens == 4


def test_files_next_to_the_program_can_be_imported(sgl, use, program, monkeypatch) -> None:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    use()
    program("WORD = 'beside'", name="sgl_test_neighbour.py")
    path = program(
        "from sgl_test_neighbour import WORD\n@sgl.function\ndef main(s):\n    s += WORD\n"
    )
    assert sgl("run", path).stdout == "beside\n"


SCRIPT = """
import sys
from sglang import function, gen, set_default_backend

RUNS = []

@function
def ask(s, q):
    s += q + gen('a', max_tokens=4)

def helper():
    RUNS.append(globals()['__name__'])
"""


@pytest.fixture
def _same_interpreter() -> Iterator[None]:
    """The interpreter is left as it was: no alias, the same folders and arguments."""
    import sys

    from sgl_mlx.compat.sglang import AliasFinder

    before = list(sys.path), sys.argv, sys.modules["__main__"]
    yield
    sys.modules.pop("beside_theirs", None)
    assert (sys.path, sys.argv, sys.modules["__main__"]) == before
    assert not any(isinstance(finder, AliasFinder) for finder in sys.meta_path)
    assert "sglang" not in sys.modules


@pytest.mark.usefixtures("_same_interpreter")
@pytest.mark.parametrize("dashes", [(), ("--",)])
@pytest.mark.parametrize(
    "arguments",
    [(), ("--num-questions", "2"), ("-n", "5", "words", "--flag"), ("a b", "ü", "--x=1")],
)
def test_a_whole_file_runs_as_python_runs_it(
    sgl, use, tmp_path, dashes: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    backend = use(" yes")
    (tmp_path / "beside_theirs.py").write_text("WORD = 'beside'")
    path = tmp_path / "theirs.py"
    path.write_text(
        SCRIPT + "from beside_theirs import WORD\n"
        "if __name__ == '__main__':\n"
        "    helper()\n"
        "    print([WORD, RUNS, sys.argv[1:], sys.argv[0] == __file__])\n"
        "    print(ask.run(q='Really?').text())\n"
        "    print(ask.run_batch([{'q': 'x'}, {'q': 'y'}])[1]['a'])\n"
    )
    result = sgl("run", "--as-sglang", str(path), *dashes, *arguments)
    assert result.exit_code == 0, result.output
    expected = ["beside", ["__main__"], list(arguments), True]
    assert result.stdout == f"{expected}\nReally? yes\n yes\n"
    assert len(backend.calls) == 3
    assert backend.stopped


@pytest.mark.usefixtures("_same_interpreter")
def test_a_whole_file_keeps_its_own_backend_and_no_model_is_loaded(
    sgl, use, tmp_path, monkeypatch
) -> None:
    from sgl_mlx.cli import engine

    use()
    monkeypatch.setattr(engine, "create_engine", lambda options: pytest.fail("loaded a model"))
    path = tmp_path / "theirs.py"
    path.write_text(
        SCRIPT + "from sgl_mlx.testing import ScriptedBackend\n"
        "mine = ScriptedBackend('own')\n"
        "set_default_backend(mine)\n"
        "print(ask.run(q='x')['a'], len(mine.calls))\n"
    )
    assert sgl("run", "--as-sglang", str(path)).stdout == "own 1\n"


@pytest.mark.usefixtures("_same_interpreter")
@pytest.mark.parametrize("name", ["Runtime", "Engine"])
@pytest.mark.parametrize("given", ["model_path='meta-llama/big'", "'error', model_path='big'"])
def test_a_model_of_the_command_line_replaces_the_files_own(
    sgl, use, tmp_path, monkeypatch, name: str, given: str
) -> None:
    import sgl_mlx
    from sgl_mlx.compat import engine

    use()
    opened: list[dict[str, object]] = []

    class Opened:
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(options)

        def shutdown(self) -> None:
            opened.append({"shut": True})

    monkeypatch.setitem(vars(sgl_mlx), "Runtime", Opened)
    monkeypatch.setattr(engine, "Engine", Opened)
    path = tmp_path / "theirs.py"
    path.write_text(f"import sglang as sgl\nsgl.{name}({given}, tp_size=8).shutdown()\n")
    assert sgl("run", "--as-sglang", "--model", "small", str(path)).exit_code == 0
    assert opened[0]["model_path"] == "small"
    assert opened[0]["tp_size"] == 8
    assert sgl("run", "--as-sglang", str(path)).exit_code == 0
    assert opened[2]["model_path"] != "small"


@pytest.mark.usefixtures("_same_interpreter")
@pytest.mark.parametrize(
    ("ending", "code", "shown"),
    [
        ("sys.exit(3)", 3, ""),
        ("raise KeyError('gone')", 1, "KeyError: 'gone'"),
        ("import argparse; argparse.ArgumentParser().parse_args()", 2, "unrecognized arguments"),
    ],
)
def test_a_whole_file_ends_as_it_does_under_python(
    sgl, use, tmp_path, ending: str, code: int, shown: str
) -> None:
    use()
    path = tmp_path / "theirs.py"
    path.write_text(SCRIPT + ending)
    result = sgl("run", "--as-sglang", str(path), "--unknown")
    assert (result.exit_code, shown in result.stderr) == (code, True)


@pytest.mark.parametrize("wrong", ["--modle", "--jsno", "--as_sglang", "--strem", "--modle=x"])
@pytest.mark.parametrize("before", [True, False])
def test_a_misspelt_option_is_named_with_the_right_one(
    sgl, use, program, wrong: str, before: bool
) -> None:
    backend, path = use(), program(HELLO)
    result = sgl("run", *((wrong, path) if before else (path, wrong)))
    right = {"--modle": "--model", "--jsno": "--json", "--strem": "--stream"}
    name = wrong.partition("=")[0]
    assert "No such option '--qwertz'" in sgl("run", "--qwertz", path).stderr
    assert f"'{name}'. Did you mean '{right.get(name, '--as-sglang')}'?" in result.stderr
    assert backend.calls == []


def test_arguments_of_a_script_need_as_sglang(sgl, use, program) -> None:
    backend = use()
    result = sgl("run", program(HELLO), "--num-questions", "2")
    assert result.exit_code == 2
    assert "unexpected '--num-questions'" in result.stderr
    assert backend.calls == []


@pytest.mark.parametrize("value", [3, "text", [1, {"a": None}], {"k": 0.5}, False])
def test_what_the_function_returns_is_printed(sgl, use, program, value: object) -> None:
    use()
    path = program(f"\n@sgl.function\ndef main(s):\n    s += 'x'\n    return {value!r}\n")
    assert sgl("run", path).stdout == f"x\nreturned: {value!r}\n"
    assert sgl("run", path, "--stream").stdout == f"x\nreturned: {value!r}\n"
    assert json.loads(sgl("run", path, "--json").stdout)["return_value"] == value


@pytest.mark.usefixtures("_same_interpreter")
def test_threads_of_a_file_share_one_engine(sgl, use, tmp_path, monkeypatch) -> None:
    import time

    from sgl_mlx.cli import engine

    backend = use(" yes")
    opened = []

    def create(options: object) -> object:
        opened.append(options)
        time.sleep(0.05)
        return backend

    monkeypatch.setattr(engine, "create_engine", create)
    path = tmp_path / "theirs.py"
    path.write_text(
        SCRIPT + "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    print(len(list(pool.map(lambda q: ask.run(q)['a'], 'abcd'))))\n"
    )
    assert sgl("run", "--as-sglang", str(path)).stdout == "4\n"
    assert len(opened) == 1
