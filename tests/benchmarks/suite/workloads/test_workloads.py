"""Each workload's program and its HTTP version ask the same questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS, find
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import IMAGE, Size, Workload
from sgl_mlx.core import Image
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.testing import Call, ScriptedBackend
from tests.compiler.outcome import outcome

SIZE = Size(0.02)
Question = tuple[Any, ...]


def answer(prompt: str) -> str:
    """Depends on the prompt, as a model's does."""
    return f" word{len(prompt)}"


class Recorder:
    """A `Client` that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[Question] = Counter()

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        images: Sequence[str] = (),
    ) -> str:
        assert prompt.count(IMAGE) == len(images)
        text = prompt.replace(IMAGE, "")
        question = text, max_tokens, tuple(stop), grammar is not None, tuple(images)
        self.asked[question] += 1
        return answer(text)

    def score(self, prompt: str, choices: Sequence[str]) -> None:
        self.asked[prompt, tuple(choices)] += 1


def question(call: Call) -> Question:
    if call.kind == "score":
        return call.text, call.choices
    assert call.params is not None
    images = tuple(str(part.source) for part in call.prompt if isinstance(part, Image))
    params = call.params
    return call.text, params.max_new_tokens, params.stop, params.constrained, images


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> Size:
    return Size(SIZE.scale, tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_both_versions_ask_the_same(workload: Workload, words: Words, size: Size) -> None:
    for row in workload.rows(words, size)[:3]:
        client = Recorder()
        workload.http(client, **row)
        backend = ScriptedBackend(answer)
        sgl.set_default_backend(backend)  # of nested programs
        workload.program.run(**row, backend=backend, ignore_eos=True).sync()
        sgl.set_default_backend(None)
        asked = [call for call in backend.calls if call.kind in ("submit", "score")]
        assert Counter(map(question, asked)) == client.asked


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_compiled_it_does_what_it_does_interpreted(
    workload: Workload, words: Words, size: Size
) -> None:
    for row in workload.rows(words, size)[:2]:
        interpreted = outcome(sgl.SglFunction(workload.program.func), dict(row))
        assert outcome(sgl.SglFunction(workload.program.func).compile(), dict(row)) == interpreted


def test_all_workloads_of_the_paper_are_there() -> None:
    assert set(WORKLOADS) == {
        *("mmlu", "hellaswag", "gsm8k", "react", "generative_agents", "tree_of_thought"),
        *("skeleton_of_thought", "multi_chain", "llm_judge", "json_decode", "long_doc_json"),
        *("multi_doc_qa", "multi_turn_chat_short", "multi_turn_chat_long", "rag", "llava_bench"),
        *("prefetch", "overhead"),
    }


def test_sizes_at_scale_one_are_the_papers() -> None:
    full, tenth = Size(1.0), Size(0.1)
    assert (full.count(140), full.tokens(900)) == (140, 900)
    assert (tenth.count(140), tenth.tokens(900)) == (14, 226)
    assert (Size(9.0).count(140), Size(9.0).tokens(900)) == (140, 900)


def test_a_workload_that_there_is_not_is_named_with_those_there_are() -> None:
    assert [w.name for w in find(("rag", "mmlu"))] == ["mmlu", "rag"]
    with pytest.raises(BenchmarkError, match="no workload is called mmul; there are mmlu, "):
        find(("mmul",))


def test_the_texts_are_as_long_as_the_paper_says(words: Words) -> None:
    row = WORKLOADS["rag"].rows(words, Size(1.0))[0]
    assert words.count(row["demonstrations"].partition("\n")[0]) == 1200


def test_pictures_are_files_in_the_folder_given(words: Words, size: Size) -> None:
    rows = WORKLOADS["llava_bench"].rows(words, size)
    assert all(Path(row["picture"]).parent == size.folder for row in rows)
