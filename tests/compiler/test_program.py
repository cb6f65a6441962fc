"""Compiled programs: errors, options, traces that are made again, requests that are made once."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.compiler.program import CompiledProgram
from sgl_mlx.errors import GraphError, InvalidParamsError, ProgramError
from sgl_mlx.testing import ScriptedBackend
from tests.compiler.generated import load
from tests.compiler.outcome import backend, outcome
from tests.patience import PATIENCE

SOURCE = """
import functools
import sgl_mlx as sgl

VIEWS = ["near", "far"]
PREFIX = "Once. "


def style():
    return "plainly"


def loudly(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) + "!"
    return wrapper


@loudly
def greeting(name):
    return "Hello " + name


@sgl.function
def whole(s, topic, count=1):
    s += PREFIX + greeting(topic) + style() + str(count) + ",".join(VIEWS)
    s += sgl.gen("x", max_tokens=4)
    first = s["x"]
    s += sgl.gen("x", max_tokens=3)
    s += first + s["x"]
    return first


@sgl.function
def parted(s, topic):
    s += "On " + topic + sgl.gen("x")
    branches = s.fork(2)
    branches += sgl.gen("y")
    branches.join()
    s += sgl.select("z", ["yes", "no"])
    if s["z"] == "yes":
        s += "agreed" + sgl.gen("w")
    return s["y"]


@sgl.function
def waits(s):
    s += "a" + sgl.gen("x")
    s["x"]
    s += "b" + sgl.gen("y")


@sgl.function
def caller(s, topic):
    called = waits.run(temperature=0)
    s += called["y"] + sgl.gen("own")
    return called


@sgl.function
def loose(s, *words, **options):
    s += " ".join(words) + sgl.gen("x", **options)
"""


@pytest.fixture
def names() -> dict[str, Any]:
    return load(SOURCE)


def same(program: sgl.SglFunction, compiled: sgl.SglFunction, arguments: dict[str, Any]) -> bool:
    return outcome(compiled, arguments) == outcome(program, arguments)


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n["VIEWS"].append("above"),
        lambda n: n.update(PREFIX="Twice. "),
        lambda n: n.update(style=lambda: "grandly"),
        lambda n: n.update(greeting=n["style"]),
        lambda n: n["whole"].func.__globals__.update(VIEWS=("a",)),
        lambda n: n.update(str=lambda x: "shadowed"),
    ],
)
def test_a_program_is_traced_again_when_what_it_read_has_changed(
    names: dict[str, Any], change: Any
) -> None:
    compiled = names["whole"].compile()
    assert same(names["whole"], compiled, {"topic": "tea"})
    change(names)
    assert same(names["whole"], compiled, {"topic": "tea"})


def test_a_value_that_is_no_text_has_a_trace_of_its_own_and_text_has_not(
    names: dict[str, Any],
) -> None:
    compiled = names["whole"].compile()
    one = compiled.graph(topic="tea", count=1)
    assert compiled.graph(topic="coffee", count=1) is one
    assert compiled.graph(topic="tea", count=True) is not one
    for count in (1, True, 1.0, "1", None):
        assert same(names["whole"], compiled, {"topic": "tea", "count": count})


def test_too_many_traces_end_in_interpretation(names: dict[str, Any]) -> None:
    compiled = names["whole"].compile()
    for count in range(80):
        assert same(names["whole"], compiled, {"topic": "tea", "count": count})


def test_arguments_and_keywords_of_any_number(names: dict[str, Any]) -> None:
    compiled = names["loose"].compile()
    for _ in range(2):
        state = compiled.run("a", "b", max_tokens=3, backend=backend())
        expected = names["loose"].run("a", "b", max_tokens=3, backend=backend())
        assert state.text() == expected.text()


def test_wrong_arguments_are_refused_as_in_the_program(names: dict[str, Any]) -> None:
    compiled = names["whole"].compile()
    for arguments in ({}, {"topic": "a", "nonsense": 1}):
        with pytest.raises(ProgramError, match=r"program whole\(\).*it takes topic, count"):
            compiled.run(backend=backend(), **arguments)
    with pytest.raises(InvalidParamsError, match="temperature"):
        compiled.run("a", backend=backend(), temperature=-1)


def test_bound_arguments_stay_bound(names: dict[str, Any]) -> None:
    bound = names["whole"].compile().bind(count=7)
    assert isinstance(bound, CompiledProgram)
    assert same(names["whole"].bind(count=7), bound, {"topic": "tea"})
    assert same(
        names["whole"].bind(count=7), names["whole"].bind(count=7).compile(), {"topic": "t"}
    )


def test_batches_and_coroutines_give_the_same(names: dict[str, Any]) -> None:
    rows = [{"topic": f"topic {i}", "count": i % 3} for i in range(40)]
    for name in ("whole", "parted"):
        own = [{k: v for k, v in row.items() if k in names[name].arg_names} for row in rows]
        texts = [s.text() for s in names[name].run_batch(own, backend=backend())]
        compiled = names[name].compile()
        assert [s.text() for s in compiled.run_batch(own, backend=backend())] == texts
        state = asyncio.run(compiled.run_async(**own[3], backend=backend()))
        assert state.text() == texts[3]


def test_a_variable_read_before_it_is_given_again_is_the_old_one(names: dict[str, Any]) -> None:
    asked = ScriptedBackend([" one", " two"])
    state = names["whole"].compile().run("tea", backend=asked)
    assert state.text().endswith(" one two one two")
    assert (state.ret_value, state["x"]) == (" one", " two")


# -- waiting and errors -------------------------------------------------------------------------


def test_the_run_waits_where_the_body_would_read(names: dict[str, Any]) -> None:
    for program in (names["waits"], names["waits"].compile()):
        with pytest.raises(ValueError, match="boom") as caught:
            program.run(backend=ScriptedBackend([ValueError("boom")]))
        assert any("in waits()" in note for note in caught.value.__notes__)


def test_a_run_that_reads_nothing_returns_while_generation_goes_on() -> None:
    names = load("import sgl_mlx as sgl\n@sgl.function\ndef p(s): s += 'a' + sgl.gen('x')\n")
    asked = ScriptedBackend("one", manual=True)
    state = names["p"].compile().run(backend=asked)
    assert "x" not in state
    asked.run_all()
    assert state.text() == "aone"


@pytest.mark.parametrize("name", ["whole", "parted"])
@pytest.mark.parametrize("failing", range(4))
def test_a_failed_request_fails_the_same_way(
    names: dict[str, Any], name: str, failing: int
) -> None:
    def run(program: sgl.SglFunction) -> str:
        replies: list[Any] = [" a", " b", " c", " d"]
        replies[failing] = ValueError("boom")
        asked = ScriptedBackend(replies, logprobs={"yes": -0.1})
        try:
            state = program.run("tea", backend=asked)
            return f"{state.error()!r} {sorted(map(str, state.stream_executor.bindings))}"
        except Exception as error:
            return f"raised {error!r}"

    assert run(names[name].compile()) == run(names[name])


def test_a_failed_template_fails_the_same_way() -> None:
    names = load("import sgl_mlx as sgl\n@sgl.function\ndef p(s): s += sgl.user('a') + 'b'\n")

    def refuse(messages: Any, add: bool) -> str:
        raise ValueError("no roles here")

    def run(program: sgl.SglFunction) -> str:
        return repr(program.run(backend=ScriptedBackend("x", render_chat=refuse)).error())

    assert run(names["p"].compile()) == run(names["p"]) != "None"


def test_roles_that_do_not_match_are_refused_as_in_the_program() -> None:
    names = load(
        "import sgl_mlx as sgl\n@sgl.function\ndef p(s):\n"
        "    s += 'a' + sgl.gen('x')\n    s += sgl.user_end()\n"
    )
    assert outcome(names["p"].compile(), {}) == outcome(names["p"], {})
    assert "does not match" in str(outcome(names["p"], {}).error)


def test_a_called_program_runs_on_the_default_backend(names: dict[str, Any]) -> None:
    def run(program: sgl.SglFunction) -> Any:
        own, default = ScriptedBackend(" own"), ScriptedBackend(" default")
        sgl.set_default_backend(default)
        try:
            state = program.run("tea", backend=own)
            called = state.ret_value
            temperatures = [call.params.temperature for call in default.calls if call.params]
            return state.text(), called.text(), own.prompts, default.prompts, temperatures
        finally:
            sgl.set_default_backend(None)

    assert run(names["caller"].compile()) == run(names["caller"])


# -- programs that are compiled up to a line ----------------------------------------------------


def test_each_request_is_made_once(names: dict[str, Any]) -> None:
    compiled = names["parted"].compile()
    assert compiled.explain().compiled == "part"
    asked = ScriptedBackend(" a", logprobs={"yes": -0.1})
    compiled.run("tea", backend=asked).sync()
    made = Counter(call.kind for call in asked.calls)
    assert made == {"submit": 4, "prefill": 1, "score": 1}


def test_samples_are_taken_as_they_came(names: dict[str, Any]) -> None:
    samples = iter(range(100))
    asked = ScriptedBackend(lambda _: f" {next(samples)}", logprobs={"yes": -0.1})
    state = names["parted"].compile().run("tea", backend=asked, temperature=1)
    assert (state["x"], state["y"], state["w"]) == (" 0", [" 1", " 2"], " 3")


def test_what_the_body_never_asks_for_is_cancelled() -> None:
    names = load(
        "import sgl_mlx as sgl\nSKIP = [False]\n"
        "def skip():\n    return SKIP.copy()[0] or None\n"
        "@sgl.function\ndef p(s, other):\n"
        "    s += 'a' + sgl.gen('x')\n"
        "    if s['x'] == 'never':\n        s += 'b'\n"
    )
    asked = ScriptedBackend("one", manual=True)
    states: list[Any] = []
    import threading

    thread = threading.Thread(
        target=lambda: states.append(names["p"].compile().run("o", backend=asked))
    )
    thread.start()
    while not asked.calls:
        thread.join(0.001)
    assert len(asked.calls) == 1
    asked.run_all()
    thread.join(PATIENCE)
    assert states[0].text() == "aone"


def test_dropping_the_state_cancels_what_is_in_flight() -> None:
    names = load(
        "import sgl_mlx as sgl\n@sgl.function\ndef p(s, other):\n"
        "    s += 'a' + sgl.gen('x') + 'b' + sgl.gen('y')\n"
        "    print(end='')\n"
        "    s += 'c'\n"
    )
    asked = ScriptedBackend("one", manual=True)
    compiled = names["p"].compile()
    assert compiled.explain(other="o").compiled == "part"
    state = compiled.run("o", backend=asked)
    assert len(asked.calls) == 1
    del state
    gc.collect()
    assert asked.calls[0].future.cancelled()


def test_the_rest_of_a_program_goes_on_asking_once_its_answers_come() -> None:
    names = load(
        "import sgl_mlx as sgl\n@sgl.function\ndef p(s, other):\n"
        "    s += 'a' + sgl.gen('x') + 'b' + sgl.gen('y')\n"
        "    print(end='')\n"
        "    s += 'c' + sgl.gen('z')\n"
    )
    asked = ScriptedBackend("1", manual=True)
    state = names["p"].compile().run("o", backend=asked)
    asked.run_all()
    assert state.text() == "a1b1c1"
    assert len(asked.calls) == 3


# -- graphs alone -------------------------------------------------------------------------------


def test_a_graph_alone_runs_as_its_program(names: dict[str, Any]) -> None:
    graph = names["whole"].trace(topic="")
    alone = CompiledProgram.from_graph(graph)
    assert same(names["whole"], alone, {"topic": "tea"})
    with pytest.raises(GraphError, match=r"'count' of compiled program whole\(\) was 1"):
        alone.run("tea", 2, backend=backend())
    with pytest.raises(GraphError, match="must be a text, got 3"):
        alone.run(3, backend=backend())
    with pytest.raises(GraphError, match="runs with n=1 only"):
        alone.run("tea", backend=backend(), n=2)


def test_a_graph_with_a_break_needs_its_program(names: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=r"ends at line .*:\d+ .*compares the variable 'z'"):
        CompiledProgram.from_graph(names["parted"].trace(topic=""))
