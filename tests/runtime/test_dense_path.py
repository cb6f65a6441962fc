"""An engine on the dense path: one request at a time, by positions that count from 0."""

from __future__ import annotations

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Parallel, SamplingParams, Shift, Text
from sgl_mlx.errors import PromptError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime import assembly
from sgl_mlx.runtime.engine import Engine
from tests.runtime.conftest import MakeEngine

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)
BRANCHES = ((Text("one branch"),), (Text("another branch"),))


@pytest.fixture
def dense(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The toy, which is a llama, forced to the dense path."""
    monkeypatch.setattr(assembly, "adapter_for", lambda model: Adapter(model, ragged=False))
    return make_engine()


@pytest.mark.parametrize(
    "prompt",
    [
        (Text("a trunk "), Parallel(BRANCHES), Text(" and the end")),
        (Text("a trunk "), Shift(7), Text(" and the end")),
    ],
    ids=["side by side", "gap"],
)
def test_positions_that_do_not_count_up_are_refused(dense: Engine, prompt: object) -> None:
    with pytest.raises(PromptError, match=r"one request at a time.*join by text"):
        dense.submit(prompt, GREEDY).result(60)  # type: ignore[arg-type]
    assert len(dense.submit((Text("go on"),), GREEDY).result(60)[0].token_ids) == 6


def test_a_join_appends_text_and_says_what_the_ragged_path_says(dense: Engine, toy: Engine) -> None:
    options = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "token_healing": False}

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += "a trunk "
        forks = s.fork(2)
        for fork, word in zip(forks, ["one", "two"], strict=True):
            fork += f"branch {word} "
        forks.join("concate_and_append")
        s += sgl.gen("end", **options)

    said = program.run(backend=dense)
    plain = "a trunk branch one branch two "
    assert said.text() == plain + said["end"]
    alone = toy.generate(plain, {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True})
    assert said["end"] == alone["text"]


def test_the_server_info_names_the_path_and_counts_calls_of_the_model(
    dense: Engine, toy: Engine
) -> None:
    info = dense.get_server_info()
    assert info["attention_path"] == "dense"
    assert toy.get_server_info()["attention_path"] == "ragged"
    before = info["stats"]["forward_passes"]
    params = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    dense.generate(["a first", "the second", "one third"], params)
    after = dense.get_server_info()["stats"]["forward_passes"]
    assert after - before == 3 * 4
