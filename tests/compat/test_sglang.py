"""`import sglang` for programs written for SGLang."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import sgl_mlx
from sgl_mlx.compat.sglang import AliasFinder
from sgl_mlx.lang.backends.runtime_endpoint import RuntimeEndpoint
from sgl_mlx.testing import ScriptedBackend

PROGRAM = """
import sglang as sgl
from sglang import function, gen, set_default_backend
from sglang.lang.ir import REGEX_INT, SglGen
from sglang.lang.choices import greedy_token_selection

@function
def tip(s, topic):
    s += "A tip for " + topic + ":" + gen("tip", max_tokens=16, stop=".")
    s += " Good? " + sgl.select("good", ["yes", "no"], choices_method=greedy_token_selection)
"""


@pytest.fixture
def alias() -> Iterator[AliasFinder]:
    with sgl_mlx.install_as_sglang() as finder:
        yield finder


def test_a_program_written_for_sglang_runs_unchanged(alias: AliasFinder) -> None:
    namespace: dict[str, Any] = {}
    exec(PROGRAM, namespace)
    state = namespace["tip"].run("health", backend=ScriptedBackend(" walk. No"))
    assert state.text() == "A tip for health: walk Good? yes"


def test_the_aliases_are_the_same_objects(alias: AliasFinder) -> None:
    sglang = importlib.import_module("sglang")
    assert sglang.gen is sgl_mlx.gen
    assert sglang.global_config is sgl_mlx.global_config
    assert sglang.__version__ == sgl_mlx.__version__


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("sglang", "function gen select user assistant RuntimeEndpoint OpenAI Runtime"),
        ("sglang.api", "gen select function set_default_backend"),
        ("sglang.lang.api", "gen select function"),
        ("sglang.lang.ir", "REGEX_INT REGEX_FLOAT REGEX_BOOL REGEX_STR SglGen SglExprList"),
        ("sglang.lang.ir", "SglSeparateReasoning SglSamplingParams SglFunction REGEX_STRING"),
        ("sglang.lang.choices", "greedy_token_selection ChoicesDecision"),
        ("sglang.lang.chat_template", "get_chat_template get_chat_template_by_model_path"),
        ("sglang.lang.interpreter", "StreamExecutor ProgramState ProgramStateGroup"),
        ("sglang.lang.backend.base_backend", "BaseBackend"),
        ("sglang.lang.backend.runtime_endpoint", "RuntimeEndpoint Runtime"),
        ("sglang.lang.backend.openai", "OpenAI"),
        ("sglang.backend.runtime_endpoint", "RuntimeEndpoint"),
        ("sglang.global_config", "global_config"),
        ("sglang.utils", "read_jsonl dump_state_text"),
        ("sglang.test.test_utils", "add_common_sglang_args_and_parse select_sglang_backend"),
        ("sglang.test.test_programs", "test_mt_bench test_stream test_few_shot_qa test_select"),
        ("sglang.test.test_programs", "test_hellaswag_select test_gen_min_new_tokens test_react"),
        ("sglang.test.test_utils", "CustomTestCase DEFAULT_MODEL_NAME_FOR_TEST is_in_ci"),
        ("sglang.test.test_utils", "dump_bench_raw_result get_call_generate get_call_select"),
        ("sglang.test.test_utils", "add_common_other_args_and_parse"),
        ("sglang.utils", "download_and_cache_file http_request print_highlight"),
        ("sglang.utils", "launch_server_cmd wait_for_server terminate_process"),
        ("sglang.utils", "encode_image_base64 stream_and_merge async_stream_and_merge"),
        ("sglang.srt.constrained.outlines_backend", "build_regex_from_object"),
        ("sglang.srt.constrained", "build_regex_from_object"),
        ("sglang.srt.hf_transformers_utils", "get_tokenizer"),
        ("sglang.srt.utils", "load_image kill_process_tree"),
        ("sglang.srt.server_args", "ServerArgs"),
        ("sglang.srt.server", "Runtime"),
        ("sglang.srt.reasoning_parser", "ReasoningParser"),
        ("sglang.srt.parser.reasoning_parser", "ReasoningParser"),
        ("sglang", "Anthropic VertexAI LiteLLM ServerArgs"),
        ("sglang.lang.tracer", "TracingScope"),
        ("sglang.lang.compiler", "CompiledFunction compile_func"),
        ("sglang.lang.backend.anthropic", "Anthropic"),
        ("sglang.lang.backend.vertexai", "VertexAI"),
        ("sglang.backend.litellm", "LiteLLM"),
        ("sglang.lang.chat_template", "ChatTemplateStyle register_chat_template ChatTemplate"),
        ("sglang.lang.interpreter", "run_program run_program_batch"),
        ("sglang.lang.ir", "SglFork SglGetForkItem"),
    ],
)
def test_modules_that_programs_import_have_their_names(
    alias: AliasFinder, module: str, names: str
) -> None:
    exec(f"from {module} import {', '.join(names.split())}", {})


def test_importing_everything_brings_the_public_names(alias: AliasFinder) -> None:
    # Engine needs mlx, so a star import of the language alone is tried here
    namespace: dict[str, Any] = {}
    exec("from sglang.lang.choices import *", namespace)
    assert importlib.import_module("sglang").__all__ == sgl_mlx.__all__


def test_a_missing_name_is_an_import_error_that_names_it(alias: AliasFinder) -> None:
    with pytest.raises(ImportError, match="Grok"):
        exec("from sglang import Grok", {})


def test_a_missing_module_is_an_import_error_that_names_it(alias: AliasFinder) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no counterpart of the module sglang\.srt"):
        importlib.import_module("sglang.srt.managers")


def test_other_imports_are_left_alone(alias: AliasFinder) -> None:
    assert alias.find_spec("sglangish", None) is None


def test_installing_twice_gives_the_same_finder(alias: AliasFinder) -> None:
    assert sgl_mlx.install_as_sglang() is alias


def test_uninstalling_leaves_no_trace_and_brings_hidden_modules_back() -> None:
    hidden = ModuleType("sglang")
    sys.modules["sglang"] = hidden
    try:
        before = list(sys.meta_path)
        with sgl_mlx.install_as_sglang():
            assert importlib.import_module("sglang").gen is sgl_mlx.gen
            importlib.import_module("sglang.lang.ir")
        assert sys.meta_path == before
        assert sys.modules["sglang"] is hidden
        assert "sglang.lang.ir" not in sys.modules
    finally:
        del sys.modules["sglang"]


def test_benchmark_programs_find_their_backend(
    alias: AliasFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = importlib.import_module("sglang.test.test_utils")
    monkeypatch.setattr(sys, "argv", ["bench.py", "--port", "1234"])
    args = helpers.add_common_sglang_args_and_parse(argparse.ArgumentParser())
    backend = helpers.select_sglang_backend(args)
    assert isinstance(backend, RuntimeEndpoint)
    assert backend.base_url == "http://127.0.0.1:1234"
    args.backend = "vllm"
    with pytest.raises(ValueError, match="unknown backend 'vllm'"):
        helpers.select_sglang_backend(args)
