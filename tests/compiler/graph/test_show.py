"""Graphs as trees and for Graphviz."""

from __future__ import annotations

import re

from sgl_mlx.compiler.graph.graph import Graph, Parameter
from sgl_mlx.compiler.graph.nodes import Break, Line, Prefetch
from sgl_mlx.compiler.graph.show import dot, label, pretty, written
from sgl_mlx.compiler.graph.values import (
    Argument,
    Constant,
    DictOf,
    Element,
    Joined,
    ListOf,
    LoopIndex,
    LoopItem,
    Method,
    StateOf,
    Texts,
    TupleOf,
    Variable,
    concat,
)
from tests.compiler import nodes as make
from tests.compiler.generated import load

SOURCE = """
import sgl_mlx as sgl

@sgl.function
def inner(s, what):
    s += what + sgl.gen("r")

@sgl.function
def program(s, topic, items=("a",), count=2):
    s += sgl.user("On " + topic) + sgl.assistant(sgl.gen("x", max_tokens=4, stop="."))
    for item in items:
        s += item
    called = inner(topic)
    f = s.fork(count)
    f += sgl.select("y", ["yes", topic])
    f.join()
    s += called["r"].strip()
    return s["x"]
"""
TREE = """\
program(topic: text, items: texts, count=2)
├─ %0 RoleBegin user
├─ %1 Text 'On {topic}'
├─ %2 RoleEnd user
├─ %3 RoleBegin assistant
├─ %4 Gen x max_new_tokens=4 stop=('.',)
├─ %5 RoleEnd assistant
├─ %6 ForEach items
│  └─ %7 Text '{%6.item}'
├─ %11 Fork 2 branches
│  ├─ %12 GetForkItem %11 0
│  └─ %14 Select y [yes, {topic}] token_length_normalized
│  ├─ %13 GetForkItem %11 1
│  └─ %15 Select y [yes, {topic}] token_length_normalized
├─ %16 Join %11 gather_variable
└─ %17 Text '{%10.r.strip()}'

stream 1
├─ %8 Call inner
├─ %9 Text '{topic}'
└─ %10 Gen r

returns {%4.x}"""


def graph() -> Graph:
    made = load(SOURCE)["program"].trace()
    assert isinstance(made, Graph)
    return made


def test_the_tree_shows_every_node_under_its_stream_fork_or_loop() -> None:
    assert pretty(graph()) == TREE


def test_values_are_written_as_in_an_f_string() -> None:
    shown = {
        "a{t}b": concat("a", Argument("t"), "b"),
        "{items[2]}": Element("items", 2),
        "{%3.item}": LoopItem(3),
        "{%3.index+1}": LoopIndex(3, 1),
        "{', '.join(items)}": Joined(", ", "items"),
        "{%1.x.replace('a', 'b')}": Method("replace", Variable(1, "x"), ("a", "b")),
        "{%1.text}": Variable(1, None),
        "(1, None)": TupleOf((Constant(1), Constant(None))),
        "[{items}]": ListOf((Texts("items"),)),
        "{k: {state 2}}": DictOf(((Constant("k"), StateOf(2)),)),
    }
    assert {written(value): value for value in shown.values()} == shown


def test_long_text_is_cut_in_the_middle() -> None:
    shown = label(make.text(0, 0, Constant("a" * 100 + "b" * 100)))
    assert re.fullmatch(r"Text 'a{29} \.\.\. b{29}'", shown)


def test_graphviz_gets_every_node_and_edge() -> None:
    made = graph()
    text = dot(made)
    ids = {int(found) for found in re.findall(r"^    n(\d+) \[", text, re.MULTILINE)}
    assert ids == {node.id for node in made}
    edges = re.findall(r"^  n(\d+) -> n(\d+)( \[style=dashed\])?;", text, re.MULTILINE)
    assert {(int(a), int(b), bool(dashed)) for a, b, dashed in edges} == {
        (edge.before, edge.after, edge.between_streams) for edge in made.edges()
    }
    assert text.count("subgraph") == len(made.streams)
    assert text.count("{") - text.count("}") == 0


def test_graphviz_text_is_quoted() -> None:
    node = make.text(0, 0, Constant('a "quoted" \\ text\n'))
    line = next(line for line in dot(Graph("p", (), (node,))).splitlines() if "n0 [" in line)
    assert line.strip() == r"""n0 [label="Text 'a \"quoted\" \\\\ text\\n'"];"""


def test_a_break_says_why_and_a_hint_what() -> None:
    stop = Break(0, 0, "if x:", "branches on x", line=Line("p", "p.py", 3))
    assert label(stop) == "Break if x: branches on x"
    assert "line 3" in dot(Graph("p", (), (stop,)))
    hint = Prefetch(0, 0, (make.role_begin(1, 0, "user"), make.text(2, 0, Constant("a"))))
    assert pretty(Graph("p", (Parameter("a", "texts", length=3),), (hint,))).splitlines() == [
        "p(a: texts[3])",
        "└─ %0 Prefetch",
        "   ├─ %1 RoleBegin user",
        "   └─ %2 Text 'a'",
    ]
