"""The command line over any encoding and with closed streams: an answer or one message."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest

from sgl_mlx.cli import streams
from tests.patience import PATIENCE

ANSWER = "\U0001f600 é ok"
COMMAND = f"""
import sys
from sgl_mlx.cli import engine, main
from sgl_mlx.testing import ScriptedBackend

def render(messages, add_generation_prompt):
    return "".join(m["content"] for m in messages)

class Backend(ScriptedBackend):
    def submit(self, prompt, *rest):
        for call in prompt:
            print(ascii(call.text), file=open({{log!r}}, "a"))
        return super().submit(prompt, *rest)

engine.create_engine = lambda options: Backend({ANSWER!r}, render_chat=render)
main()
"""
ENCODINGS: dict[str, dict[str, str]] = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "plain c": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def sgl_mlx(
    folder: Path,
    args: Sequence[str | bytes],
    stdin: bytes | None,
    env: Mapping[str, str],
    tail: str,
) -> tuple[int, str, str]:
    """Run the command in a shell that may close its streams; returns code, output and errors."""
    script = folder / "command.py"
    script.write_text(COMMAND.format(log=str(folder / "log")), "utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        ["sh", "-c", f'"$@" {tail}', "sh", sys.executable, str(script), *args],
        input=stdin,
        capture_output=True,
        env={**kept, **env},
        timeout=120,
    )
    return (
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


def asked(folder: Path) -> str:
    log = folder / "log"
    return log.read_text() if log.exists() else ""


CASES: dict[str, tuple[list[str | bytes], bytes]] = {
    "prompt": (["generate", "café"], b""),
    "bad prompt": (["generate", b"caf\xe9"], b""),
    "stream": (["generate", "x", "--stream"], b""),
    "json": (["generate", "x", "--json"], b""),
    "stdin": (["generate", "-"], "café".encode()),
    "bad stdin": (["generate", "-"], b"caf\xe9"),
    "chat": (["chat"], "café\n".encode()),
    "bad chat": (["chat"], b"caf\xe9\nok\n"),
    "bad stop": (["generate", "x", "--stop", b"\xe9"], b""),
    "bad system": (["chat", "--system", b"\xe9"], b"ok\n"),
    "bad image": (["chat"], b"/image caf\xe9.png\nok\n"),
    "bad command": ([b"caf\xe9"], b""),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_gives_an_answer_or_one_message(tmp_path: Path, encoding: str) -> None:
    for name, (args, stdin) in CASES.items():
        code, out, err = sgl_mlx(tmp_path, args, stdin, ENCODINGS[encoding], "")
        assert "Traceback" not in err + out, (name, err)
        assert code in (0, 1, 2), (name, err)
        if not name.startswith("bad"):
            assert code == 0, (name, err)
            assert "ok" in out, name
        elif name in ("bad prompt", "bad stop", "bad system", "bad command"):
            assert code == 2, name
            assert "the byte 0xE9 at position" in err
        if name == "prompt":
            assert asked(tmp_path).startswith(r"'caf\xe9'")


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", ">/dev/full", "| head -c 1"]


@pytest.mark.parametrize("tail", CLOSED)
def test_closed_and_full_streams_are_no_tracebacks(tmp_path: Path, tail: str) -> None:
    for args in (["generate", "x"], ["generate", "-"], ["chat"]):
        code, out, err = sgl_mlx(tmp_path, args, b"hi\n", {}, tail)
        assert "Traceback" not in err + out, (args, err)
        assert "Exception ignored" not in err
        needs_input = "<&-" in tail and args in (["generate", "-"], ["chat"])
        if needs_input and "2>&-" not in tail:
            assert (code, "standard input is closed" in err) == (1, True)


def test_what_is_printed_does_not_land_in_a_file_that_is_opened(tmp_path: Path) -> None:
    sgl_mlx(tmp_path, ["generate", "x"], b"", {}, "<&- >&-")
    assert asked(tmp_path) == "'x'\n"


def test_a_line_that_is_no_text_is_told_and_the_conversation_goes_on(sgl, use) -> None:
    backend = use("Yes.")
    result = sgl("chat", stdin=b"caf\xe9?\nSay hi.\n")
    assert result.exit_code == 0
    assert "this line was not sent: it holds the byte 0xE9 at position 3" in result.stderr
    assert [prompt.count("Say hi.") for prompt in backend.prompts] == [1]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal that takes single bytes for characters."""
    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[0] &= ~getattr(termios, "IUTF8", 0o40000)
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    yield ours, theirs
    os.close(ours)


def test_half_a_character_on_a_terminal_is_told(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(log=str(tmp_path / "log")), "utf-8")
    process = subprocess.Popen(
        [sys.executable, script, "chat"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    os.close(theirs)
    seen = read_until(ours, b"> ")
    os.write(ours, b"hi \xe8\x83\r")
    # some readlines drop the bytes, and the rest is answered; otherwise an error names the byte
    seen += read_until(ours, b"0xE8 at position 3", b" ok")
    os.write(ours, b"/exit\r")
    assert process.wait(PATIENCE) == 0
    assert b"Traceback" not in seen


def read_until(terminal: int, *marks: bytes) -> bytes:
    seen = b""
    while (
        not any(mark in seen for mark in marks) and select.select([terminal], [], [], PATIENCE)[0]
    ):
        seen += os.read(terminal, 4096)
    return seen


FILES = {
    "utf-8": "é".encode(),
    "marked": "é".encode("utf-8-sig"),
    "utf-16": "é".encode("utf-16"),
}


@pytest.mark.parametrize(("file", "option"), [*product(FILES, ["--grammar", "-"])])
def test_files_with_a_mark_are_read_without_it(
    sgl, use, tmp_path: Path, file: str, option: str
) -> None:
    backend = use()
    path = tmp_path / "grammar"
    path.write_bytes(FILES[file])
    if option == "-":
        assert sgl("generate", "-", stdin=FILES[file]).exit_code == 0
        assert backend.prompts == ["é"]
    else:
        assert sgl("generate", "x", option, str(path)).exit_code == 0
        assert backend.calls[0].params.grammar == "é"


def test_the_name_of_a_file_may_hold_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(name).touch()
    assert streams.arguments(["--image", name, f"--image={name}"])[1:] == [name, f"--image={name}"]


def test_json_is_ascii_where_the_output_lacks_a_character(tmp_path: Path) -> None:
    _, out, _ = sgl_mlx(tmp_path, ["generate", "x", "--json"], b"", ENCODINGS["latin-1"], "")
    assert r"\ud83d\ude00 \u00e9 ok" in out


PROGRAM = """
import sgl_mlx as sgl
from sgl_mlx.testing import ScriptedBackend

@sgl.function
def answer(s):
    s += "a" + sgl.gen("x")

states = answer.run_batch([{}, {}], backend=ScriptedBackend(%r), progress_bar=True)
print(*(state["x"] for state in states))
answer.compile().explain()
"""


@pytest.mark.parametrize("tail", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_library_runs_with_closed_streams(tail: str) -> None:
    program = PROGRAM % ANSWER
    done = subprocess.run(
        ["sh", "-c", f'"$@" {tail}', "sh", sys.executable, "-c", program], capture_output=True
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
