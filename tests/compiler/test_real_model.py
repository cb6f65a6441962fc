"""The programs of the examples on the real model: the same text compiled and interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Prompt, SamplingParams
from sgl_mlx.runtime.engine import Engine
from tests.compiler.test_differential import PROGRAMS, ROOT, needed
from tests.embedded import open_embedded

EYE = ROOT / "examples" / "train_tiny_llava" / "checkpoint"

_TOKENS = 4
"""For each gen: what is right for the first few is right for all."""

SHORT = {"judge": {"article": "Seeds are lent like books."}, "solve": {"depth": 1, "width": 2}}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_embedded(mmproj=str(EYE), max_total_tokens=12000) as engine:
        submit = engine.submit

        def submit_few(prompt: Prompt, params: SamplingParams, *rest: Any) -> Any:
            few = replace(params, max_new_tokens=min(params.max_new_tokens, _TOKENS))
            return submit(prompt, few, *rest)

        engine.submit = submit_few  # type: ignore[method-assign]
        sgl.set_default_backend(engine)
        yield engine
        sgl.set_default_backend(None)


def said(program: sgl.SglFunction, engine: Engine) -> Any:
    engine.flush_cache()
    # The seed is for gens with a temperature of their own: noise depends on seed and position.
    state = program.run(
        **(needed(program) | SHORT.get(program.name, {})), backend=engine, temperature=0, seed=7
    )
    names = sorted(filter(None, state.stream_executor.bindings))
    return state.text(), state.messages(), [(name, state[name]) for name in names], state.ret_value


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_compiled_program_says_what_the_interpreted_one_says(
    program: sgl.SglFunction, engine: Engine
) -> None:
    assert said(program.compile(), engine) == said(program, engine)
