"""Every word of the language goes through the compiler, which has no list of words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.compiler.graph.nodes import Append
from sgl_mlx.compiler.graph.serialise import dumps, loads
from sgl_mlx.compiler.program import CompiledProgram
from sgl_mlx.compiler.tracing.words import WORDS
from sgl_mlx.lang import ir
from tests.compiler.generated import load
from tests.compiler.outcome import outcome

PACKAGE = Path(__file__).parents[2] / "sgl_mlx"
CALLS = {
    "gen": 'sgl.gen(topic, max_tokens=3, stop=".")',
    "gen_int": 'sgl.gen_int("n " + topic, max_tokens=2)',
    "gen_string": 'sgl.gen_string("t", max_tokens=2)',
    "select": 'sgl.select("c", [topic + "!", "no"])',
    "image": "sgl.image(topic)",
    "video": 'sgl.video("a.mp4", 3)',
    "system": "sgl.system(topic)",
    "user": 'sgl.user("On " + topic)',
    "assistant": 'sgl.assistant(sgl.gen("x"))',
    "system_begin": "sgl.system_begin() + topic + sgl.system_end()",
    "system_end": "sgl.system_begin() + topic + sgl.system_end()",
    "user_begin": "sgl.user_begin() + topic + sgl.user_end()",
    "user_end": "sgl.user_begin() + topic + sgl.user_end()",
    "assistant_begin": "sgl.assistant_begin() + topic + sgl.assistant_end()",
    "assistant_end": "sgl.assistant_begin() + topic + sgl.assistant_end()",
    "separate_reasoning": 'sgl.separate_reasoning(sgl.gen(topic + "r"))',
}


def test_every_word_that_programs_may_import_is_tried() -> None:
    assert {word.__name__ for word in WORDS if hasattr(sgl, word.__name__)} == CALLS.keys()


@pytest.mark.parametrize("word", CALLS)
def test_a_word_is_traced_saved_loaded_and_run(word: str) -> None:
    source = f"import sgl_mlx as sgl\n@sgl.function\ndef p(s, topic):\n    s += {CALLS[word]}\n"
    program = load(source)["p"]
    graph = program.trace()
    assert graph.broken is None
    assert loads(dumps(graph)) == graph
    arguments = {"topic": "tea"}
    alone = CompiledProgram.from_graph(loads(dumps(graph)))
    assert outcome(alone, arguments) == outcome(program, arguments)


def test_an_expression_has_one_class_which_graphs_hold_too() -> None:
    graph = load(
        "import sgl_mlx as sgl\n@sgl.function\ndef p(s, topic):\n    s += topic + sgl.gen('x')\n"
    )["p"].trace()
    held: list[Any] = [node.expr for node in graph if isinstance(node, Append)]
    assert [type(expr) for expr in held] == [ir.Text, ir.Gen]


@pytest.mark.parametrize("word", ["Video", "Image"])
def test_files_of_the_compiler_name_no_word_that_needs_nothing_of_them(word: str) -> None:
    """So a word like these touches `ir`, `words`, `interpreter` and the package's names alone."""
    naming = [
        path.relative_to(PACKAGE).as_posix()
        for path in (*PACKAGE.glob("compiler/**/*.py"), *PACKAGE.glob("lang/*.py"))
        if re.search(
            rf"(?<!core )\b{word}\(Expr\)|\bir\.{word}\b|-> {word}:", path.read_text("utf-8")
        )
    ]
    assert sorted(naming) == ["lang/interpreter.py", "lang/ir.py", "lang/words.py"]
