"""Programs that say `import sglang` compile as those that say `import sgl_mlx` do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sgl_mlx
from sgl_mlx.testing import ScriptedBackend

NAMES = count()


@pytest.fixture(autouse=True)
def _alias() -> Iterator[None]:
    with sgl_mlx.install_as_sglang():
        yield


def load(folder: Path, source: str) -> Any:
    """The function `f` of a module with this source, which the compiler can read."""
    path = folder / f"prog_{next(NAMES)}.py"
    path.write_text(source)
    namespace: dict[str, Any] = {"__name__": "__prog__"}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace["f"]


CALLS = [
    "{p}gen('a', stop='\\n', max_tokens=7)",
    "{p}gen('b', temperature=0.5)",
    "{p}select('c', ['yes', 'no'])",
    "{p}user('hi') + {p}assistant({p}gen('d'))",
    "{p}gen_int('e')",
    "{p}system('be brief')",
    "{p}user_begin() + q + {p}user_end()",
]
IMPORTS = [
    ("import sglang as sgl", "sgl."),
    ("import sglang", "sglang."),
    ("from sglang import *", ""),
    ("from sglang.lang import api as sgl", "sgl."),
    ("import sglang.api as sgl", "sgl."),
    ("from sglang import gen, gen_int, select, system, user, assistant\n"
     "from sglang import user_begin, user_end, function", ""),
]  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    calls=st.lists(st.sampled_from(CALLS), min_size=1, max_size=4),
    imported=st.sampled_from(IMPORTS),
    inside=st.booleans(),
)
def test_aliased_programs_compile_to_the_same_graph(
    tmp_path: Path, calls: list[str], imported: tuple[str, str], inside: bool
) -> None:
    def source(statement: str, prefix: str) -> str:
        body = "".join(f"    s += {call.format(p=prefix)}\n" for call in calls)
        if inside and "*" not in statement:
            lines = [f"    {line}\n" for line in statement.splitlines()]
            body = "".join(lines) + body
        return f"{statement}\n@{prefix}function\ndef f(s, q='text'):\n{body}"

    theirs = load(tmp_path, source(*imported)).compile()
    ours = load(tmp_path, source("import sgl_mlx as sgl", "sgl.")).compile()
    assert theirs.explain().compiled
    assert without_lines(theirs.graph()) == without_lines(ours.graph())


def without_lines(graph: Any) -> str:
    return re.sub(r"Line\([^)]*\)", "", str(graph))


class LazyModule(ModuleType):
    """A module whose names come from a method, as lazily loading packages have it."""

    WORD = "from the class"

    def __getattr__(self, name: str) -> Any:
        if name == "greeting":
            return "hello "
        raise AttributeError(name)


def test_attributes_of_modules_of_any_class_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = LazyModule("lazy_words")
    monkeypatch.setitem(sys.modules, "lazy_words", module)
    f = load(
        tmp_path,
        "import sglang as sgl, lazy_words\n@sgl.function\ndef f(s):\n"
        "    s += lazy_words.greeting + lazy_words.WORD + sgl.gen('a')\n",
    ).compile()
    assert f.explain().compiled
    assert f.run(backend=ScriptedBackend("!")).text() == "hello from the class!"
    module.greeting = "good bye "  # what was read is looked up anew at every run
    assert f.run(backend=ScriptedBackend("!")).text() == "good bye from the class!"


@pytest.mark.parametrize("written", ["f'Ask {q}'", "f'{q:>9}'", "'Ask ' + q"])
@pytest.mark.parametrize("given_", [{}, {"q": "why"}])
def test_trace_refuses_f_strings_of_arguments_left_out(
    tmp_path: Path, written: str, given_: dict[str, str]
) -> None:
    f = load(tmp_path, f"import sglang as sgl\n@sgl.function\ndef f(s, q):\n    s += {written}\n")
    if written.startswith("f") and not given_:
        with pytest.raises(TypeError, match="'q'"):
            f.trace(**given_)
    else:
        assert f.trace(**given_).nodes
    if ":" not in written:
        assert f.compile().explain().compiled == "whole"
