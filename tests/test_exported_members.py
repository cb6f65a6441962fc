"""The public names: what programs written for SGLang import, and nothing by accident."""

from __future__ import annotations

import importlib.util
import inspect
from importlib.metadata import version

import pytest

import sgl_mlx

# Every name of SGLang's language that a program may use as `sgl.<name>`.
SGLANG_NAMES = [
    "Engine",
    "OpenAI",
    "Runtime",
    "RuntimeEndpoint",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "global_config",
    "greedy_token_selection",
    "image",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
]
GEN_PARAMETERS = [
    "name",
    "max_tokens",
    "min_tokens",
    "n",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "ignore_eos",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
    "dtype",
    "choices",
    "choices_method",
    "regex",
    "json_schema",
]
OWN_PARAMETERS = ["grammar", "token_healing", "ebnf"]


def test_all_is_sorted_and_complete() -> None:
    assert sgl_mlx.__all__ == sorted(set(sgl_mlx.__all__))
    assert set(SGLANG_NAMES) <= set(sgl_mlx.__all__)


@pytest.mark.parametrize("name", sorted(set(sgl_mlx.__all__) - {"Engine"}))
def test_every_exported_name_resolves(name: str) -> None:
    assert getattr(sgl_mlx, name) is not None


def test_engine_names_a_module_that_exists() -> None:
    assert importlib.util.find_spec("sgl_mlx.runtime.engine") is not None


def test_names_loaded_later_are_listed() -> None:
    assert set(sgl_mlx.__all__) <= set(dir(sgl_mlx))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sgl_mlx.nonsense


def test_version_is_the_one_of_the_package() -> None:
    assert sgl_mlx.__version__ == version("sgl-mlx")


def test_gen_takes_its_arguments_in_sglangs_order() -> None:
    assert list(inspect.signature(sgl_mlx.gen).parameters) == GEN_PARAMETERS + OWN_PARAMETERS


@pytest.mark.parametrize("word", [sgl_mlx.gen_int, sgl_mlx.gen_string])
def test_typed_gens_take_what_gen_takes_less_what_a_dtype_settles(word: object) -> None:
    settled = {"min_tokens", "dtype", "choices", "choices_method", "regex", "json_schema"}
    expected = [name for name in GEN_PARAMETERS if name not in settled]
    assert list(inspect.signature(word).parameters) == expected  # type: ignore[arg-type]


def test_select_takes_its_arguments_in_sglangs_order() -> None:
    expected = ["name", "choices", "temperature", "choices_method"]
    assert list(inspect.signature(sgl_mlx.select).parameters) == expected
