"""Compiled and interpreted programs do the same: text, messages, variables, requests, effects."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings

import sgl_mlx as sgl
from sgl_mlx.compiler.check import check
from tests.compiler.generated import load, programs
from tests.compiler.outcome import outcome

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
REQUIRED = {"review": "Cold soup.", "tip": "Rest.", "question": "Why?", "city": "Oslo"}


def functions() -> Iterator[Any]:
    for path in [*FILES, ROOT / "cli" / "demo_programs.py"]:
        if "@sgl.function" in path.read_text("utf-8"):
            for name, thing in runpy.run_path(str(path)).items():
                if isinstance(thing, sgl.SglFunction):
                    yield pytest.param(thing, id=f"{path.stem}-{name}")


PROGRAMS = list(functions())


def needed(program: sgl.SglFunction) -> dict[str, Any]:
    required = program.arg_names[: len(program.arg_names) - len(program.arg_defaults)]
    return {name: REQUIRED.get(name, "something") for name in required}


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(programs())
def test_generated_programs_do_the_same(drawn: tuple[str, dict[str, Any]]) -> None:
    source, arguments = drawn
    first, second = load(source), load(source)
    interpreted = outcome(first["program"], arguments)
    compiled = second["program"].compile()
    check(compiled.graph(**arguments))
    event(compiled.explain(**arguments).compiled)
    event("raises" if interpreted.error else "ends")
    assert outcome(compiled, arguments) == interpreted
    assert second["LOG"] == first["LOG"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_the_repository_do_the_same(program: sgl.SglFunction) -> None:
    arguments = needed(program)
    assert outcome(program.compile(), arguments) == outcome(program, arguments)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"n": 2}, {"stream": True}])
@pytest.mark.parametrize("program", PROGRAMS)
def test_so_they_do_with_options(program: sgl.SglFunction, options: dict[str, Any]) -> None:
    arguments = needed(program)
    assert outcome(program.compile(), arguments, **options) == outcome(
        program, arguments, **options
    )


def test_generated_programs_are_of_all_kinds() -> None:
    kinds: Counter[str] = Counter()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(programs())
    def count(drawn: tuple[str, dict[str, Any]]) -> None:
        source, arguments = drawn
        kinds[load(source)["program"].compile().explain(**arguments).compiled] += 1

    count()
    assert kinds["whole"] >= 25
    assert kinds["part"] >= 25
