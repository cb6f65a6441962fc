"""An engine on the dense path: one request at a time, by positions that count from 0."""

from __future__ import annotations

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Parallel, SamplingParams, Shift, Text
from sgl_mlx.errors import PromptError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime import assembly
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Extend, Row
from tests.models.conformance import check, uncompiled
from tests.models.toy import toy_config, toy_model
from tests.models.toy_configs import WINDOW
from tests.patience import PATIENCE
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
        dense.submit(prompt, GREEDY).result(PATIENCE)  # type: ignore[arg-type]
    assert len(dense.submit((Text("go on"),), GREEDY).result(PATIENCE)[0].token_ids) == 6


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


WINDOWED = ["gemma3_text", "gpt_oss"]


@pytest.mark.parametrize("architecture", WINDOWED)
def test_layers_with_a_window_gather_the_window(architecture: str) -> None:
    adapter = Adapter(toy_model(architecture, toy_config(architecture)), ragged=False)
    pool = KVPool(adapter.layers, 40, adapter.dtype)
    runner = ModelRunner(adapter, pool, frozenset())
    slots, lengths = tuple(range(40, 0, -1)), [0, 3, 20, 35]
    with uncompiled():
        for start, end in zip(lengths, [*lengths[1:], 40], strict=True):
            tokens = tuple(range(3 + start, 3 + end))
            row = Row("a", tokens, slots[:start], slots[start:end], start, False, GREEDY)
            runner.run(Extend((row,)))
    read = {x.window: pool.keys[i].tokens_read for i, x in enumerate(adapter.layers)}
    assert read == {None: sum(lengths), WINDOW: sum(min(n, WINDOW - 1) for n in lengths)}


@pytest.mark.parametrize("architecture", WINDOWED)
def test_windowed_models_have_the_distributions_of_mlx_lm(architecture: str) -> None:
    with uncompiled():
        check(Adapter(toy_model(architecture, toy_config(architecture)), ragged=False))
