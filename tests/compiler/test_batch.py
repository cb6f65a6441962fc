"""A compiled batch starts in the order that computes shared prefixes once."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.program import SglFunction
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.testing import ScriptedBackend
from tests.runtime.conftest import MakeEngine, make_engine, toy_folder

__all__ = ["make_engine", "toy_folder"]

TEMPLATES = [f"{i} ".join(f"rule{j}" for j in range(40)) for i in range(4)]
LEFT = 3
"""Tokens that each program generates."""


@sgl.function
def ask(s: Any, template: str, question: str) -> None:
    s += template + "\n" + question + "\n"
    s += sgl.gen("answer", max_tokens=LEFT, ignore_eos=True)


def batch() -> list[dict[str, str]]:
    rows = [{"template": TEMPLATES[i % 4], "question": f"question {i:02}?"} for i in range(64)]
    random.Random(0).shuffle(rows)
    return rows


def hit_rate(engine: Engine, program: SglFunction) -> float:
    before = engine.get_server_info()["stats"]
    states = program.run_batch(batch(), backend=engine, num_threads=4, temperature=0)
    assert [s.text().splitlines()[1] for s in states] == [r["question"] for r in batch()]
    after = engine.get_server_info()["stats"]
    cached, total = (after[k] - before[k] for k in ("cached_tokens", "prompt_tokens"))
    return float(cached / total)


def best_rate(engine: Engine) -> float:
    """Each distinct beginning computed once, and the last token of each prompt."""
    prompts = [
        tuple(engine.tokenizer.encode(f"{r['template']}\n{r['question']}\n")) for r in batch()
    ]
    distinct = {p[:end] for p in prompts for end in range(1, len(p) + 1)}
    return 1 - len(distinct) / sum(map(len, prompts))


def test_a_pool_too_small_for_all_hits_as_often_as_any_order_can(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = max(map(len, TEMPLATES))
    options = {"max_total_tokens": 2 * longest, "context_length": 2 * longest}
    compiled = hit_rate(make_engine(**options), ask.compile())
    plain = hit_rate(engine := make_engine(**options), ask)
    best = best_rate(engine)
    with capsys.disabled():
        rates = f"compiled {compiled:.1%}, as given {plain:.1%}, best {best:.1%}"
        sys.stdout.write(f"\nhit rate: {rates}\n")
    assert compiled >= 0.99 * best
    assert plain < compiled


def test_a_batch_starts_sorted_and_comes_back_as_given() -> None:
    backend = ScriptedBackend(lambda prompt: prompt[-4:])
    rows = [{"template": t, "question": q} for q in "xy" for t in ("aa", "bb")]
    states = ask.compile().run_batch(rows, backend=backend, num_threads=1)
    assert [s.text()[:4] for s in states] == ["aa\nx", "bb\nx", "aa\ny", "bb\ny"]
    assert [text[:4] for text in backend.prompts] == ["aa\nx", "aa\ny", "bb\nx", "bb\ny"]


def test_what_nested_programs_begin_with_is_computed_before_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @sgl.function
    def inner(s: Any, topic: str) -> None:
        s += "You judge essays on style, on substance, and on nothing else whatever. Essay: "
        s += topic + sgl.gen("grade", max_tokens=1)

    @sgl.function
    def outer(s: Any, topic: str) -> None:
        s += "Every run of this program begins with these words, which are long enough. "
        s += topic + sgl.gen("text", max_tokens=1)
        s += inner(topic=topic)["grade"]

    backend = ScriptedBackend(lambda prompt: "x")
    monkeypatch.setattr(sgl.global_config, "default_backend", backend)
    outer.compile().run_batch([{"topic": "a"}, {"topic": "b"}])
    assert [text[:11] for text in backend.prefills] == ["Every run o", "You judge e"]
    assert all(call.kind == "prefill" for call in backend.calls[:2])
