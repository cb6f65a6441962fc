"""Every example runs as a script and as `sgl-mlx run` runs it, here on a scripted model."""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import sgl_mlx as sgl
from sgl_mlx.cli import engine as cli_engine
from sgl_mlx.cli import main
from sgl_mlx.core import Completion
from sgl_mlx.testing import ScriptedBackend

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {"choose": ["--arg", "review=Cold soup."]}


class CountingBackend(ScriptedBackend):
    """Replies with a word or a field, and has the counters that examples print."""

    def __init__(self, **likes: float) -> None:
        super().__init__(_reply, logprobs=likes, render_chat=_render)

    def submit(self, *args: Any) -> Future[tuple[Completion, ...]]:
        counts = {"forced_tokens": 0, "decoded_tokens": 0}
        answer = super().submit(*args)
        done: Future[tuple[Completion, ...]] = Future()
        done.set_result(tuple(replace(c, extra=counts) for c in answer.result()))
        return done

    def get_server_info(self) -> dict[str, Any]:
        return {"stats": {"prompt_tokens": 0, "cached_tokens": 0}}

    def __enter__(self) -> CountingBackend:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


def _reply(prompt: str) -> str:
    fields = {"Price in euros: ": "7", "Event: ": '{"band": "B", "place": "P"}'}
    return next((reply for end, reply in fields.items() if prompt.endswith(end)), "word")


def _render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>\n" for m in messages)
    return turns + "<assistant>" * add_generation_prompt


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> CountingBackend:
    """Stands in for the engine, whether the example or the command line opens it."""
    backend = CountingBackend(D=-0.1, bad=-0.1, **{"5": -0.1})
    monkeypatch.setitem(vars(sgl), "Engine", lambda **_: backend)  # setattr would import mlx first
    monkeypatch.setattr(cli_engine, "create_engine", lambda model: backend)
    monkeypatch.setattr(sgl.global_config, "default_backend", None)
    return backend


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_as_a_script_and_prints(
    path: Path, scripted: CountingBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert scripted.calls


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_from_the_command_line(path: Path, scripted: CountingBackend) -> None:
    target = f"{path}:tips" if path.stem == "parallel_tips" else str(path)
    result = CliRunner().invoke(main, ["run", target, *NEEDS.get(path.stem, [])])
    assert (result.exit_code, result.stderr.strip()) == (0, "")
    assert result.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_enough_to_learn_from(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 40


def test_the_judge_reads_one_article_in_all_branches(scripted: CountingBackend) -> None:
    judge = runpy.run_path(str(EXAMPLES[0].with_name("llm_judge.py")))["judge"]
    state = judge.run(article="One fact.", backend=scripted)
    assert state["grade"] == "D"
    assert state["verdict"] == ["word"] * 4
    shared = state.text()[: state.text().index("I have read it.")]
    assert all(prompt.startswith(shared) for prompt in scripted.prompts)


def test_the_search_goes_on_from_the_best_thought() -> None:
    solve = runpy.run_path(str(EXAMPLES[0].with_name("tree_of_thought.py")))["solve"]
    thoughts = iter(["first", "second", "third", "fourth", " 9"])
    backend = ScriptedBackend(lambda _: next(thoughts), render_chat=_render, logprobs={"5": -0.1})
    state = solve.run("Q?", depth=2, width=2, backend=backend)
    steps = [turn["content"] for turn in state.messages() if turn["role"] == "assistant"]
    assert steps == ["first", "third", "The answer is 9"]


def test_only_a_bad_review_is_asked_for_its_complaint() -> None:
    read = runpy.run_path(str(EXAMPLES[0].with_name("choose.py")))["read_review"]
    bad = ScriptedBackend(" Cold soup.", logprobs={"bad": -0.1})
    good = ScriptedBackend(" Cold soup.", logprobs={"good": -0.1})
    assert read.run("It was cold.", backend=bad)["complaint"] == " Cold soup."
    assert "complaint" not in read.run("It was fine.", backend=good)


def test_the_fields_are_asked_for_by_their_forms(scripted: CountingBackend) -> None:
    extract = runpy.run_path(str(EXAMPLES[0].with_name("json_fields.py")))["extract"]
    extract.run(backend=scripted).sync()
    asked = [call.params for call in scripted.calls if call.params]
    assert [bool(p.regex) for p in asked] == [True, False, False]
    assert [p.dtype for p in asked] == [None, "int", None]
    assert [bool(p.json_schema) for p in asked] == [False, False, True]
