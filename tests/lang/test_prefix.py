"""The text that all runs of a program begin with, computed ahead of them."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.testing import ScriptedBackend

INSTRUCTIONS = "Answer the question in one short sentence, and then give your reason for it. "


@sgl.function
def ask(s: Any, question: str) -> None:
    s += INSTRUCTIONS
    s += f"Question: {question}\n" + sgl.gen("x")


def test_cache_computes_the_text_before_the_first_argument() -> None:
    backend = ScriptedBackend("one")
    assert ask.cache(backend) > 0
    assert backend.prefills == [INSTRUCTIONS + "Question: "]
    assert backend.prompts == []


def test_programs_that_take_any_arguments_have_a_prefix_too() -> None:
    @sgl.function
    def program(s: Any, *words: str, **options: Any) -> None:
        s += INSTRUCTIONS
        s += "".join(words) + sgl.gen("x", **options)

    backend = ScriptedBackend("one")
    program.cache(backend)
    assert backend.prefills == [INSTRUCTIONS]
    assert program.arg_names == []


def test_a_short_prefix_is_not_worth_caching() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Say " + sgl.gen("x")

    backend = ScriptedBackend("one")
    assert program.cache(backend) == 0
    assert backend.calls == []


def test_a_body_that_breaks_on_placeholders_still_has_its_prefix() -> None:
    @sgl.function
    def program(s: Any, n: int) -> None:
        s += INSTRUCTIONS
        s += "x" * n

    backend = ScriptedBackend("one")
    program.cache(backend)
    assert backend.prefills == [INSTRUCTIONS]


@pytest.mark.parametrize(("enabled", "prefills"), [(True, 1), (False, 0)])
def test_a_batch_caches_its_prefix_first_if_told_to(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, prefills: int
) -> None:
    monkeypatch.setattr(sgl.global_config, "enable_precache_with_tracing", enabled)
    backend = ScriptedBackend("one")
    ask.run_batch([["a"], ["b"]], backend=backend)
    assert len(backend.prefills) == prefills
