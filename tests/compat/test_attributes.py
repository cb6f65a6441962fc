"""Attributes and options that programs written for SGLang use."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.config import EngineConfig


@sgl.function
def traced(s: Any, q: str) -> Any:
    s += "Q: " + q + sgl.gen("a", max_tokens=3)
    forks = s.fork(2)
    forks += sgl.gen("b")
    forks.join()
    return s["a"]


def test_traces_have_sglangs_names(capsys: pytest.CaptureFixture[str]) -> None:
    graph = traced.trace()
    assert {"a", "b"} <= set(graph.variables)
    assert len(graph.child_states) == 2
    assert len(graph.flatten_nodes()) >= len(graph.nodes)
    last: Any = graph.last_node
    assert repr(last) == repr(graph.nodes[-1])
    assert last.id == graph.nodes[-1].id
    assert "Gen" in last.print_graph_dfs()
    assert graph.ret_value == graph.result
    traced.compile().print_graph()
    assert capsys.readouterr().out.strip() == last.print_graph_dfs().strip()


@given(st.lists(st.sampled_from(["text", sgl.gen("x"), sgl.user("hi")]), min_size=1))
def test_expressions_are_listed(parts: list[Any]) -> None:
    whole: Any = "a"
    for part in parts:
        whole = whole + part if not isinstance(whole, str) else sgl.gen("z") + part
    assert whole.expr_list == list(whole.items)


@given(limit=st.none() | st.integers(0, 99), stop=st.none() | st.lists(st.text(min_size=1)))
def test_a_gens_parameters_can_be_read(limit: int | None, stop: list[str] | None) -> None:
    params = sgl.gen("x", max_tokens=limit, stop=stop).sampling_params  # type: ignore[union-attr]
    assert params.max_new_tokens == (128 if limit is None else limit)
    assert params.stop == tuple(stop or ())


def test_the_reasoning_variable_has_a_rule() -> None:
    node: Any = sgl.separate_reasoning(sgl.gen("a"), "qwen3").items[0]
    assert node.process_name_for_reasoning("b") == "b_reasoning_content"


SAMPLING = ["custom_params", "spaces_between_special_tokens", "stream_interval", "structural_tag"]
ENGINE = [
    "grammar_backend",
    "json_model_override_args",
    "is_embedding",
    "enable_metrics",
    "max_prefill_tokens",
    "nnodes",
    "schedule_conservativeness",
    "cuda_graph_bs",
    "disable_custom_all_reduce",
    "page_size",
    "reasoning_parser",
    "tool_call_parser",
    "enable_p2p_check",
    "watchdog_timeout",
    "tp_size",
    "speculative_algorithm",
]


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_parameters_of_sglang_alone_are_warned_about(name: str) -> None:
    with pytest.warns(UserWarning, match=name):
        assert SamplingParams.of({name: 1, "top_k": 3}) == SamplingParams(top_k=3)


@pytest.mark.parametrize("name", ENGINE)
def test_engine_options_of_sglang_alone_are_warned_about(name: str) -> None:
    with pytest.warns(UserWarning, match=name):
        assert EngineConfig.of({name: 1, "random_seed": 3}) == EngineConfig(random_seed=3)


def test_one_place_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("default")
    for _ in range(3):
        SamplingParams.of({"custom_params": {}})
    assert len(recwarn) == 1


@given(st.dictionaries(st.from_regex(re.compile("[a-z_]+"), fullmatch=True), st.none()))
def test_none_never_raises(options: dict[str, None]) -> None:
    assert SamplingParams.of(options) == SamplingParams()
    assert EngineConfig.of(options) == EngineConfig()


def test_sglangs_name_of_the_seed_is_taken() -> None:
    assert SamplingParams.of({"sampling_seed": 7}).seed == 7


def test_other_names_are_still_refused() -> None:
    with pytest.raises(InvalidParamsError, match="'temprature'"):
        SamplingParams.of({"temprature": 1})
    with pytest.raises(InvalidParamsError, match="'modle_path'"):
        EngineConfig.of({"modle_path": "x"})


@given(st.sampled_from(["a", "long_name"]), st.sampled_from([None, "qwen3"]), st.booleans())
def test_separated_reasoning_is_listed_behind_its_gen(
    name: str, model: str | None, around: bool
) -> None:
    generator = sgl.gen(name)
    made = sgl.separate_reasoning("so " + generator if around else generator, model)
    *_, first, second = made.expr_list
    assert len(made.expr_list) == 2 + around
    assert first is generator
    found: Any = second
    assert (found.name, found.model_type) == (f"{name}_reasoning_content", model)
