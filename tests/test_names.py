"""Unknown names are refused with what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx import names
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import SglError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.testing import ScriptedBackend


@sgl.function
def echo(s: Any, question: str) -> None:
    s += question


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: SamplingParams.of({"temprature": 1}), "temperature"),
        (lambda: SamplingParams.of({"max-new-tokens": 1}), "max_new_tokens"),
        (lambda: EngineConfig.of({"kv_bit": 8}), "kv_bits"),
        (lambda: EngineConfig.of({"Model_Path": "x"}), "model_path"),
        (lambda: sgl.gen("x", max_token=5), "max_tokens"),
        (lambda: sgl.gen_int("x", max_token=5), "max_tokens"),
        (lambda: sgl.select("x", choises=["a"]), "choices"),
        (lambda: sgl.separate_reasoning(sgl.gen("x"), modeltype="qwen3"), "model_type"),
        (lambda: echo.run("a", backend=ScriptedBackend(), temprature=1), "temperature"),
        (lambda: echo.run(backend=ScriptedBackend(), questoin="a"), "question"),
        (lambda: ScriptedBackend() and SamplingParams().override(stopp="a"), "stop"),
    ],
)
def test_a_mistyped_name_is_refused_with_what_was_meant(
    call: Callable[[], object], meant: str
) -> None:
    with pytest.raises(SglError, match=f"did you mean '{meant}'"):
        call()


def test_a_name_like_none_gets_no_guess_but_all_that_are_known() -> None:
    assert names.unknown("thing", ["zzzz"], ["b", "a"]) == "unknown thing 'zzzz'; known are a, b"


def test_a_known_name_is_not_guessed() -> None:
    assert names.meant(["stop"], ["stop", "step"]) == ""
