"""Each form that only a run can decide ends the trace at its line, and changes no result."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.compiler.graph.nodes import Break
from tests.compiler.generated import load
from tests.compiler.outcome import outcome

BEGIN = """
import random, time, re, math, json
from dataclasses import dataclass
import sgl_mlx as sgl

SEEN, TABLE, TOTAL = [], {"a": "b"}, 0


class Thing:
    label = "class"

    def __init__(self):
        self.word = "word"

    def __str__(self):
        SEEN.append("str")
        return "thing"

    def __format__(self, spec):
        SEEN.append("format")
        return "thing"

    def __bool__(self):
        SEEN.append("bool")
        return True

    def __eq__(self, other):
        SEEN.append("eq")
        return True

    def __hash__(self):
        SEEN.append("hash")
        return 1

    def __add__(self, other):
        SEEN.append("add")
        return "sum"

    def __iter__(self):
        SEEN.append("iter")
        return iter(["x", "y"])

    def __len__(self):
        SEEN.append("len")
        return 2

    def __getitem__(self, key):
        SEEN.append("item")
        return "item"

    def __call__(self, *args):
        SEEN.append("call")
        return "called"

    @property
    def computed(self):
        SEEN.append("property")
        return "computed"


THING = Thing()


def tool(text):
    SEEN.append(text)
    return "tool said " + text


def words():
    yield "one"
    yield "two"


@sgl.function
def program(s, topic, items=("one", "two")):
    s += "On " + topic + ":" + sgl.gen("x", max_tokens=4)
    f = s.fork(2)
    f += sgl.gen("b", max_tokens=3)
    f.join()
"""
LINE = BEGIN.count("\n") + 1

FORMS = {
    # the value of a variable decides
    "equality": 'if s["x"] == "yes":\n    s += "a"\nelse:\n    s += "b"',
    "inequality": 's += "a" if s["x"] != "yes" else "b"',
    "order": 's += "a" if s["x"] < "m" else "b"',
    "truth": 'if s["x"]:\n    s += "a"',
    "not": 'if not s["x"]:\n    s += "a"',
    "and": 's += s["x"] and "full"',
    "or": 's += s["x"] or "empty"',
    "while": 'while len(s["x"]) > 90:\n    s += "a"',
    "membership": 's += "a" if "e" in s["x"] else "b"',
    "membership of it": 's += "a" if s["x"] in ("yes", "no") else "b"',
    "a text made of it": 's += "a" if f"<{s[\'x\']}>" == "<yes>" else "b"',
    "an argument": 's += "a" if topic == "tea" else "b"',
    "match": 'match s["x"]:\n    case "yes":\n        s += "a"\n    case _:\n        s += "b"',
    "any": 's += "a" if any(word == "yes" for word in s["b"]) else "b"',
    "int": 's += "a" * int(len(s["x"]))',
    "float": 's += str(float("1" + s["x"][:0]))',
    "range": 'for i in range(len(s["x"])):\n    s += str(i)',
    "iteration": 'for letter in s["x"]:\n    s += letter',
    "comprehension": 's += "".join([letter for letter in s["x"]])',
    "split": 's += s["x"].split("e")[0]',
    "index": 's += s["x"][:1]',
    "startswith": 's += "a" if s["x"].startswith("y") else "b"',
    "count": 's += str(s["x"].count("e"))',
    "a spec": "s += f\"{s['x']:>9}\"",
    "repr": "s += f\"{s['x']!r}\"",
    "percent r": 's += "%r" % s["x"]',
    "width": 's += "%9s" % s["x"]',
    "format field": 's += "{0[0]}".format(s["x"] + "-")',
    "a key": 's += {"yes": "a"}.get(s["x"], "b")',
    "how many keys": 's += str(len({word: 1 for word in s["b"]}))',
    "how many keys of a display": 's += str(len({topic: 1, s["x"]: 2, "tea": 3}))',
    "a number of it": "n = int(s['x'])\ns += str(n)",
    "a set": 's += str(len({s["x"], "yes"}))',
    "sorting": 's += sorted(s["b"])[0]',
    "largest": 's += max(s["b"])',
    "a regex": 's += re.sub("e", "a", s["x"])',
    "a length": 's += sgl.gen("y", max_tokens=1 + len(s["x"]))',
    "a stop string": 's += sgl.gen("y", stop=s["x"] + ".")',
    "branches": "g = s.fork(1 + len(s['x']) // 90)\ng += sgl.gen('y')\ng.join()",
    "a variable of that name": 's[s["x"] + "!"] = "1"\ns += s["yes!"] if "yes!" in s else "none"',
    "unpacking": 'first, second = s["b"]\ns += second\na, *rest = s["b"]\ns += rest[0]',
    # other things than variables that only a run has
    "is it there": 's += "a" if "x" in s else "b"',
    "text": "s += str(len(s.text()))",
    "messages": "s += str(len(s.messages()))",
    "meta info": 's += s.get_meta_info("x")["finish_reason"]["type"]',
    "error": "s += str(s.error())",
    # the world
    "a tool": 's += tool("call")',
    "a tool on a variable": 's += tool(s["x"])',
    "a global": "global TOTAL\nTOTAL = TOTAL + 1\ns += 'a'",
    "a list outside": 'SEEN.append(topic)\ns += "a"',
    "a dictionary outside": 'TABLE[topic] = "c"\ns += TABLE["a"]',
    "an attribute": "THING.word = topic\ns += THING.word",
    "random": 's += "a" if random.random() >= 0 else "b"',
    "the clock": 's += "a" if time.time() > 0 else "b"',
    "print": 'print("", end="")\ns += "a"',
    "open": 'open("/dev/null").close()\ns += "a"',
    "an import": "import this_module_is_not_there\ns += 'a'",
    "a generator": "for word in words():\n    s += word",
    "a lazy generator": 'g = (SEEN.append(w) or w for w in ["p", "q"])\ns += next(g)',
    "try": 'try:\n    s += "a"\nfinally:\n    s += "b"',
    "raise": 'raise ValueError("on purpose")',
    "a failing assertion": 'assert 1 == 2, "on purpose"',
    "a division by zero": "s += str(1 / 0)",
    "a missing key": 's += TABLE["z"]',
    "a missing variable": 's += s["nobody"]',
    "None": "s += None",
    "a number": "s += 3",
    # objects with code of their own
    "foreign str": "s += str(THING)",
    "foreign format": 's += f"{THING}"',
    "foreign percent": 's += "%s" % THING',
    "foreign truth": 's += "a" if THING else "b"',
    "foreign equality": 's += "a" if THING == s["x"] else "b"',
    "foreign sum": 's += THING + s["x"]',
    "foreign iteration": "for word in THING:\n    s += word",
    "foreign length": "s += str(len(THING))",
    "foreign item": "s += THING[0]",
    "foreign call": 's += THING("x")',
    "foreign property": "s += THING.computed",
    "foreign key": "s += str(len({THING: 1}))",
    "a class": "s += Thing.label",
    "a set in its order": 's += "".join({"p", "q", "r"})',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_only_a_run_decides_breaks_at_its_line(form: str) -> None:
    body = "".join(f"    {line}\n" for line in FORMS[form].splitlines())
    source = BEGIN + body + '    s += " end"\n'
    first, second = load(source), load(source)
    compiled = second["program"].compile()
    broken = compiled.graph().broken
    assert isinstance(broken, Break)
    assert broken.line is not None
    lines = range(LINE, LINE + body.count("\n"))
    assert broken.line.number in lines or broken.line.function == "tool"
    assert broken.code == source.splitlines()[broken.line.number - 1].strip()
    assert len(broken.reason) > 5
    assert f":{broken.line.number}: {broken.reason}" in str(compiled.explain())
    assert second["SEEN"] == []  # tracing has touched nothing
    arguments = {"topic": "tea"}
    assert outcome(compiled, arguments) == outcome(first["program"], arguments)
    assert (second["SEEN"], second["TABLE"], second["TOTAL"]) == (
        first["SEEN"],
        first["TABLE"],
        first["TOTAL"],
    )


WHOLE = {
    "text of a variable": 's += s["x"]',
    "an f-string": "s += f\"{s['x']} and {topic}\"",
    "format": 's += "{} {t}".format(s["x"], t=topic)',
    "percent": 's += "%s %d %%" % (s["x"], 3)',
    "percent by name": 's += "%(a)s" % {"a": topic}',
    "methods": 's += s["x"].strip().upper().replace("E", "a")',
    "join": 's += ", ".join(s["b"]) + ", ".join(items)',
    "a generator at once": 's += " ".join(f"({t.strip()})" for t in s["b"])',
    "zip": 'for a, b in zip(("p", "q"), s["b"], strict=True):\n    s += a + b',
    "None is not": 's += "a" if s["x"] is not None else "b"',
    "its own list": 'own = []\nfor t in s["b"]:\n    own.append(t)\nown += "z"\ns += "-".join(own)',
    "its own dictionary": 'd = {"a": s["x"]}\nd["b"] = topic\ns += d["a"] + d.get("c", d["b"])',
    "plain functions": "s += str(sum([1, 2])) + str(math.floor(2.5)) + json.dumps(TABLE)",
    "a lambda": 'say = lambda what: f"<{what}>"\ns += say(s["x"])',
    "a function inside": 'def say(what, end="!"):\n    return what + end\ns += say(topic)',
    "a word without a run": "s += str(len(TABLE)) + TABLE['a']",
    "an attribute of an object": "s += THING.word",
    "while on numbers": 'n = 0\nwhile n < 2:\n    s += f"{n}"\n    n += 1',
    "for with else": 'for i in range(2):\n    if i:\n        break\nelse:\n    s += "no"\ns += "a"',
    "a walrus": 'if (n := len(TABLE)) == 1:\n    s += f"{n}"',
    "a copy": 'with s.copy() as c:\n    c += sgl.gen("c")\ns += "".join(s["c"])',
    "score": 'd = sgl.score(s, ["yes", "no"])\ns += d.decision',
    "a kept value": 's["kept"] = "k"\ns += s["kept"]',
    "a sync": "s.sync()\ns += 'a'",
    "the length of a list argument": "g = s.fork(len(items))\ng += sgl.gen('q')\ng.join()",
    "an item of a list argument": "s += items[0]",
    "items of an argument": 's += "".join(i + "." for i in items)',
    "choices that depend on the run": 's += sgl.select("y", [topic + "?", s["x"] + "!"])',
    "choices that are an argument": 's += sgl.select("y", items) + sgl.gen("z", choices=items)',
    "scores of an argument": "s += sgl.score(s, items).decision",
    "a name that depends on the run": "s += sgl.gen(topic, max_tokens=2)\ns += s[topic]",
    "reasoning": 's += sgl.separate_reasoning(sgl.gen("r"))\ns += s["r_reasoning_content"]',
    "returned texts": 'return {"x": s["x"], topic: [s["b"], items]}',
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_form_that_needs_no_decision_is_compiled(form: str) -> None:
    body = "".join(f"    {line}\n" for line in WHOLE[form].splitlines())
    source = BEGIN + body
    first, second = load(source), load(source)
    compiled = second["program"].compile()
    for topic in ("tea", "% {}", ""):
        arguments = {"topic": topic or "x", "items": ["p", "q"]}
        assert compiled.explain(**arguments).compiled == "whole"
        assert outcome(compiled, arguments) == outcome(first["program"], arguments)


def test_a_loop_over_an_argument_stays_a_loop() -> None:
    names = load(
        "import sgl_mlx as sgl\n"
        "@sgl.function\n"
        "def program(s, items):\n"
        "    for i, item in enumerate(items, 1):\n"
        "        s += f'{i}. {item}' + sgl.gen(f'x{i}')\n"
        "        s += s[f'x{i}']\n"
    )
    compiled = names["program"].compile()
    (loop,) = compiled.graph(items=["a"]).nodes
    assert type(loop).__name__ == "ForEach"
    assert compiled.graph(items=["a", "b", "c"]) is compiled.graph(items=["a"])
    for items in (["a", "b"], [], ("z",)):
        arguments: dict[str, Any] = {"items": items}
        assert outcome(compiled, arguments) == outcome(names["program"], arguments)


def test_a_loop_whose_turns_depend_on_one_another_is_traced_for_its_length() -> None:
    names = load(
        "import sgl_mlx as sgl\n"
        "@sgl.function\n"
        "def program(s, items):\n"
        "    said = ''\n"
        "    for item in items:\n"
        "        said = said + item\n"
        "        s += said + sgl.gen('x')\n"
        "    s += said\n"
    )
    compiled = names["program"].compile()
    explained = compiled.explain(items=["a", "b"])
    assert explained.compiled == "whole"
    assert "for one length" in str(explained)
    for items in (["a", "b"], [], ("z", "y", "x")):
        arguments: dict[str, Any] = {"items": items}
        assert outcome(compiled, arguments) == outcome(names["program"], arguments)


def test_a_program_without_source_is_interpreted_and_says_so() -> None:
    names: dict[str, Any] = {"sgl": sgl}
    exec("def program(s): s += 'a' + sgl.gen('x')", names)
    program = sgl.function(names["program"])
    explained = program.compile().explain()
    assert explained.compiled == "none"
    assert "source of program()" in str(explained)
    assert outcome(program.compile(), {}) == outcome(program, {})


def test_a_program_whose_file_has_changed_is_interpreted() -> None:
    names = load("import sgl_mlx as sgl\n@sgl.function\ndef program(s):\n    s += 'old'\n")
    import linecache

    file = names["program"].func.__code__.co_filename
    text = "import sgl_mlx as sgl\n@sgl.function\ndef program(s):\n    s += 'new'\n"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    assert "what was imported" in str(names["program"].compile().explain())
    assert outcome(names["program"].compile(), {}).text == "old"
