"""Graphs in files: read back equal, run without their source, refused when changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.compiler.graph import serialise
from sgl_mlx.compiler.graph.graph import Graph, Parameter
from sgl_mlx.compiler.graph.serialise import _digest, dumps, load, loads, save
from sgl_mlx.compiler.graph.values import Constant
from sgl_mlx.compiler.program import CompiledProgram
from sgl_mlx.errors import GraphError
from tests.compiler import nodes as make
from tests.compiler.generated import load as load_source
from tests.compiler.generated import programs
from tests.compiler.outcome import backend, outcome

SOURCE = """
import sgl_mlx as sgl

@sgl.function
def inner(s, what):
    s += what + sgl.gen("r", max_tokens=2)
    return s["r"]

@sgl.function
def program(s, topic, items=("a", "b"), count=2, extra=(1, "x", None, 0.5)):
    s += sgl.system("Be brief.") + sgl.user(f"{topic.strip()} {', '.join(items)} {extra[1]}")
    with s.assistant():
        s += sgl.gen("x", max_tokens=4, stop=["\\n", "."], temperature=0.5, dtype=int)
    for i, item in enumerate(items, 1):
        s += f"{i} {item}" + sgl.select(f"c{i}", [item, "no " + topic])
    f = s.fork(count, position_ids_offset=[0, 3])
    f += sgl.separate_reasoning(sgl.gen("y", json_schema={"type": "object"}), "kimi")
    f.join()
    with s.var_scope("v"):
        s += "/".join(s["y"]) + inner(topic).ret_value
    s["kept"] = ("k", s["x"])
    d = sgl.score(s, ["yes", "no"])
    s.sync()
    return {"x": s["x"], "d": d.decision, "all": [topic, items, count], "t": (s["v"], None)}
"""


def graph() -> Graph:
    made = load_source(SOURCE)["program"].trace()
    assert isinstance(made, Graph)
    assert made.broken is None
    return made


def sealed(content: Any, **changes: Any) -> str:
    """A file that holds this graph, with a checksum that fits."""
    whole = {"format": serialise.FORMAT, "version": serialise.VERSION, "sha256": _digest(content)}
    return json.dumps({**whole, "graph": content, **changes})


def content() -> Any:
    return json.loads(dumps(graph()))["graph"]


def test_a_graph_is_read_back_equal(tmp_path: Path) -> None:
    made = graph()
    save(made, tmp_path / "program.json")
    assert load(tmp_path / "program.json") == made
    assert dumps(loads(dumps(made))) == dumps(made)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(programs())
def test_generated_graphs_are_read_back_equal(drawn: tuple[str, dict[str, Any]]) -> None:
    source, arguments = drawn
    made = load_source(source)["program"].trace(**arguments)
    again = loads(dumps(made))
    assert again == made
    if again.broken is None:
        alone = CompiledProgram.from_graph(again)
        assert outcome(alone, arguments) == outcome(load_source(source)["program"], arguments)


def test_it_runs_in_a_fresh_process_without_the_source(tmp_path: Path) -> None:
    save(graph(), tmp_path / "program.json")
    program = (
        "import sys\n"
        "from sgl_mlx.compiler.program import CompiledProgram\n"
        "from sgl_mlx.compiler.graph.serialise import load\n"
        "from sgl_mlx.testing import ScriptedBackend\n"
        "import sgl_mlx as sgl\n"
        "backend = ScriptedBackend('word')\n"
        "sgl.set_default_backend(backend)\n"
        "compiled = CompiledProgram.from_graph(load(sys.argv[1]))\n"
        "state = compiled.run('tea', items=['p', 'q', 'r'], backend=backend)\n"
        "print(repr((state.text(), state.messages(), state.ret_value, state['kept'])))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "program.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    namespace: dict[str, Any] = {}
    here = program.replace("sys.argv[1]", repr(str(tmp_path / "program.json")))
    here = here.replace("CompiledProgram.from_graph(load(", "given((").replace("print(", "said = (")
    exec(here, namespace | {"given": lambda _: load_source(SOURCE)["program"]}, found := {})
    assert done.stdout.strip() == found["said"]
    import sgl_mlx as sgl

    sgl.set_default_backend(None)


# -- files that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "format"),
        ('{"format": "sgl-mlx graph", "version": NaN}', "no JSON"),
        ('{"format": "sgl-mlx graph"}', "version"),
        ('{"format": "sgl-mlx graph", "version": true}', "version"),
        (
            '{"format": "sgl-mlx graph", "version": 3, "graph": {"new": 1}}',
            "version 3.*or update",
        ),
        ('{"format": "sgl-mlx graph", "version": 1}', "of version 1.*compile the program again"),
        ('{"format": "sgl-mlx graph", "version": 2}', "checksum"),
    ],
)
def test_what_is_no_graph_is_refused_and_the_error_says_why(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        loads(text)


def test_a_changed_letter_is_noticed() -> None:
    with pytest.raises(GraphError, match="checksum"):
        loads(dumps(graph()).replace("Be brief.", "Be brief!"))


def test_the_error_of_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GraphError, match=r"bad\.json.*no text"):
        load(path)
    path.write_text("{}")
    with pytest.raises(GraphError, match=r"bad\.json: "):
        load(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nodes", 1, "is"), "Popen", "expected Node"),
        (("nodes", 1, "is"), "Value", "expected Node"),
        (("nodes", 1, "is"), "Graph", "expected Node"),
        (("nodes", 1, "expr", "command"), "rm", "Text has no 'command'"),
        (("nodes", 1, "id"), "one", "expected int"),
        (("nodes", 1, "id"), 0, "taken by another node"),
        (("nodes", 1, "stream"), 9, "has not begun"),
        (("nodes", 1, "expr", "value"), {"is": "Argument", "name": "nobody"}, "is not there"),
        (
            ("nodes", 1, "expr", "value"),
            {"is": "Variable", "source": 99, "name": "x"},
            "is not there",
        ),
        (("nodes", 1, "expr", "value"), {"is": "Gen"}, "expected"),
        (("nodes", 0, "expr", "role"), "root", "expected"),
        (("nodes", 0, "expr", "is"), "Popen", "expected Expr"),
        (("nodes", 0, "expr", "is"), "LateText", "expected Expr"),
        (("nodes", 0, "expr", "is"), "Append", "expected Expr"),
        (("program",), 3, "expected str"),
        (("nodes",), {}, "expected tuple"),
        (("reads",), [0], "gives no variable"),
    ],
)
def test_a_well_sealed_graph_that_makes_no_sense_is_refused(
    path: tuple[Any, ...], value: Any, message: str
) -> None:
    changed = content()
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(GraphError, match=message):
        loads(sealed(changed))


def replaced(node: str, **fields: Any) -> str:
    changed = content()
    things = [*changed["nodes"], *(each.get("expr", {"is": ""}) for each in changed["nodes"])]
    found = next(each for each in things if each["is"] == node)
    found.update(fields)
    return sealed(changed)


@pytest.mark.parametrize(
    ("node", "fields", "message"),
    [
        ("Gen", {"sampling": {"dict": [["max_tokens", 3]]}}, "unknown sampling parameter"),
        ("Gen", {"sampling": {"dict": [["temperature", "hot"]]}}, "temperature cannot be"),
        ("Gen", {"sampling": {"dict": [["stop", {"dict": []}]]}}, "stop cannot be"),
        ("Gen", {"sampling": []}, "expected dict"),
        ("Score", {"method": "__import__"}, "unknown method '__import__'"),
        ("Fork", {"offsets": []}, "no branches"),
        ("SeparateReasoning", {"gen": {"is": "Text", "value": "x"}}, "expected Gen"),
        ("GetForkItem", {"index": 7}, "no branch 7"),
        ("Join", {"fork": 0}, "is no Fork"),
        ("Join", {"mode": "steal"}, "expected"),
        ("ForEach", {"argument": "topic"}, "no list of texts"),
    ],
)
def test_a_node_that_makes_no_sense_is_refused(
    node: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        loads(replaced(node, **fields))


def test_only_methods_of_text_can_be_called() -> None:
    text = json.dumps(content())
    assert '"name": "strip"' in text
    for name in ("format", "__class__", "encode"):
        changed = json.loads(text.replace('"name": "strip"', f'"name": "{name}"'))
        with pytest.raises(GraphError, match="is not there"):
            loads(sealed(changed))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_no_change_whatever_does_anything_but_raise_graph_errors(data: st.DataObject) -> None:
    changed = content()
    places: list[tuple[Any, Any]] = []

    def visit(thing: Any) -> None:
        for key in thing if isinstance(thing, dict) else range(len(thing)):
            places.append((thing, key))
            if isinstance(thing[key], (dict, list)):
                visit(thing[key])

    visit(changed)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places))
        leaf = st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-2, 99),
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(["x", "Gen", "Text", "topic", "__class__", "strip"]),
        )
        tree = st.recursive(
            leaf,
            lambda c: st.lists(c, max_size=2) | st.dictionaries(st.just("is"), c),
            max_leaves=3,
        )
        if isinstance(holder, dict) or key < len(holder):
            holder[key] = data.draw(tree)
    try:
        made = loads(sealed(changed))
    except GraphError:
        return
    assert isinstance(made, Graph)
    dumps(made)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(GraphError):
        loads(text)


def test_a_constant_that_is_no_data_stays_out_of_files_but_its_graph_can_be_shown() -> None:
    names = load_source(
        "import sgl_mlx as sgl\n@sgl.function\n"
        "def p(s, method=sgl.greedy_token_selection):\n"
        "    s += sgl.select('x', ['a', 'b'], choices_method=method)\n"
    )
    graph = names["p"].trace()
    assert graph.parameters[0].opaque
    alone = CompiledProgram.from_graph(loads(dumps(graph)))
    assert outcome(alone, {}) == outcome(names["p"], {})
    with pytest.raises(GraphError, match="was 'GreedyTokenSelection'"):
        alone.run(object(), backend=backend())


def test_a_graph_with_foreign_data_is_not_written() -> None:
    node = make.gen(0, 0, Constant("x"), {"stop": (object(),)})
    with pytest.raises(GraphError, match="no plain data"):
        dumps(Graph("p", (Parameter("a", "text"),), (node,)))
