"""Compiled and interpreted programs do the same: text, messages, variables, requests, effects."""

from __future__ import annotations

import re
import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import sgl_mlx as sgl
from sgl_mlx.benchmarks.micro.prefetch_program import caller
from sgl_mlx.compiler.graph.validate import check
from tests.compiler.generated import load, programs
from tests.compiler.outcome import outcome

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    ROOT / "cli" / "demo_programs.py",
    ROOT / "docs" / "letter.py",
]
REQUIRED = {
    "review": "Cold soup.",
    "tip": "Rest.",
    "question": "Why?",
    "city": "Oslo",
    "scan": str(ROOT / "examples" / "scans" / "1.png"),
}


def functions() -> Iterator[Any]:
    for path in FILES:
        if "@sgl.function" in path.read_text("utf-8"):
            for name, thing in runpy.run_path(str(path)).items():
                if isinstance(thing, sgl.SglFunction):
                    yield pytest.param(thing, id=f"{path.stem}-{name}")
    yield pytest.param(caller("Judge the draft with care."), id="prefetch_program-write")


PROGRAMS = list(functions())


def needed(program: sgl.SglFunction) -> dict[str, Any]:
    required = program.arg_names[: len(program.arg_names) - len(program.arg_defaults)]
    return {name: REQUIRED.get(name, "something") for name in required}


FEATURES = {
    "forks": r"\.fork\(",
    "gathered": r"\.join\(\)",
    "appended": "concate_and_append",
    "roles as words": r"\+= sgl\.(user|system|assistant)\(",
    "roles as methods": r"\.(user|system|assistant)\([^)]",
    "roles as blocks": r"with \w+\.(user|system|assistant)\(\):",
    "roles by hand": "_begin",
    "copies": r"\.copy\(",
    "nested programs": r"(inner|judge)\(",
    "select": r"sgl\.select",
    "scopes": "var_scope",
    "early returns": r"if .*\n +return",
    "branches on what was generated": r'if .*\["',
    "loops on what was generated": "for word in",
    "effects": r"note\(",
}


def test_generated_programs_do_the_same() -> None:
    """Every program twice, on backends of their own; and that all kinds of them were among it."""
    distinct: set[str] = set()
    kinds: Counter[Any] = Counter()

    @settings(
        max_examples=400,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
        database=None,
    )
    @given(programs())
    def run(drawn: tuple[str, dict[str, Any]]) -> None:
        source, arguments = drawn
        first, second = load(source), load(source)
        interpreted = outcome(first["program"], arguments)
        compiled = second["program"].compile()
        graph = check(compiled.graph(**arguments))
        ran = outcome(compiled, arguments)
        assert ran == interpreted
        assert interpreted.hints <= ran.hints
        assert second["LOG"] == first["LOG"]
        distinct.add(source + repr(arguments))
        body = source.partition("def program(")[2]
        kinds.update(name for name, form in FEATURES.items() if re.search(form, body))
        kinds.update({type(node).__name__ for node in graph} & {"Prefetch"})
        kinds.update([compiled.explain(**arguments).compiled, f"{forks_deep(body)} deep"])
        kinds["raises"] += interpreted.error is not None

    run()
    table = ", ".join(f"{name} {number}" for name, number in sorted(kinds.items()))
    sys.stdout.write(f"\n{len(distinct)} programs: {table}\n")
    assert len(distinct) >= 200
    assert min(kinds[name] for name in [*FEATURES, "whole", "part"]) >= 25
    assert kinds["Prefetch"] >= 10
    assert kinds["3 deep"] >= 5
    assert kinds["raises"] <= len(distinct) / 10


def forks_deep(body: str) -> int:
    """How many forks or copies stand inside one another."""
    depth = {"s": 0}
    names = re.finditer(
        r"(?P<fork>\w+) = (?P<of>\w+)\.fork"
        r"|for (?:i, )?(?P<branch>br\d+) in (?:enumerate\()?(?P<all>\w+)"
        r"|with (?P<source>\w+)\.copy\(\) as (?P<copy>\w+)",
        body,
    )
    for name in names:
        if name["fork"]:
            depth[name["fork"]] = depth[name["of"]] + 1
        elif name["branch"]:
            depth[name["branch"]] = depth[name["all"]]
        else:
            depth[name["copy"]] = depth[name["source"]] + 1
    return max(depth.values())


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
