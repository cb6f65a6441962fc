"""Python itself, walked over by the compiler: it computes what Python computes."""

from __future__ import annotations

import pytest

from tests.compiler.generated import load
from tests.compiler.outcome import outcome

BEGIN = """
import functools
import sgl_mlx as sgl

WORDS = ["ape", "bee", "cat"]
NUMBERS = {"one": 1, "two": 2}


def loudly(times):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs) + "!" * times
        return wrapper
    return decorate


@loudly(2)
def greet(name, *others, end=".", **more):
    return f"{name}{others}{end}{sorted(more.items())}"


def count_down(n):
    return "0" if n == 0 else f"{n} " + count_down(n - 1)


def appended(item, to=None):
    to = [] if to is None else to
    to.append(item)
    return to


def in_turn(s, who, text):
    with s.user():
        s += text
        for i in range(3):
            if i == 1:
                return who + s_says(s)
            s += f"({i})"


def s_says(state):
    state.extend(sgl.gen("said", max_tokens=2))
    return state["said"]


@sgl.function
def program(s, topic):
    out = []
"""

CASES = {
    "keyword arguments": 'out.append(greet("a", "b", end="?", x=1, **{"y": 2}))',
    "star arguments": 'out.append(greet(*["a", "b"], *("c",)))',
    "recursion": "out.append(count_down(4))",
    "default arguments": 'out += appended("a") + appended("b", ["c"])',
    "closures see later values": "fs = [lambda: i for i in range(3)]\nout.append(str(fs[0]()))",
    "defaults are taken at once": (
        "fs = [lambda i=i: i for i in range(3)]\nout.append(str(fs[0]()))"
    ),
    "a function inside with all kinds of parameters": (
        'def f(a, /, b="b", *c, d, e="e", **g):\n    return a + b + str(c) + d + e + str(g)\n'
        'out.append(f("a", d="d") + f("1", "2", "3", d="4", e="5", h="6"))'
    ),
    "comprehensions nest": 'out.append(str([x + y for x in "ab" if x != "z" for y in "cd"]))',
    "comprehension names stay inside": 'x = "x"\n[x for x in "ab"]\nout.append(x)',
    "dictionary comprehensions": "out.append(str({v: k for k, v in NUMBERS.items()}))",
    "sorting": 'out.append(str(sorted({"b", "a"})) + str(sorted([3, 1], reverse=True)))',
    "slices": 'out.append(WORDS[-1][::-1] + str(WORDS[:2]) + "abc"[1])',
    "chained comparisons": 'out.append("yes" if 1 < 2 <= 2 != 3 else "no")',
    "short circuits": "out.append(str(0 or [] or 'a') + str(1 and '' and 1 / 0))",
    "while, continue and else": (
        "n = 0\nwhile n < 4:\n    n += 1\n    if n == 2:\n        continue\n    out.append('a')\n"
        'else:\n    out.append("end")'
    ),
    "for and break": 'for w in WORDS:\n    if w == "cat":\n        break\n    out.append(w)',
    "unpacking": '(a, b), c = "pq", "r"\nfor k, (v, w) in [("x", "yz")]:\n    out.append(k + w)',
    "swapping": 'a, b = "1", "2"\na, b = b, a\nout.append(a + b)',
    "several targets": 'a = b = "t"\nout.append(a + b)',
    "annotations": 'a: str = "t"\nb: int\nout.append(a)',
    "deleting": 'a = "t"\nb = a\ndel a\nout.append(b)',
    "arithmetic": 'out.append(f"{7 // 2} {7 % 3} {2 ** 5} {-3} {~5} {1 << 3 | 1:>4} {7 / 2:.2f}")',
    "formats": 'out.append("{0:>5}|{1!r}|{a:<{2}}|".format("x", "y", 4, a="z"))',
    "percent": 'out.append("%5.1f|%-4s|%x|%%|%r" % (3.14159, "a", 255, "b"))',
    "text of texts": 'out.append("{0} {0!s}".format(topic) + "%s" % topic + f"{topic!s}")',
    "sets and tuples": "out.append(str((1,) + (2,)) + str(len({1, 2, 1})) + str(2 in (1, 2)))",
    "dictionaries": (
        'd = dict(NUMBERS, three=3)\nd["four"] = 4\nd.update(five=5)\nd.pop("one")\n'
        'out.append(str(d) + str(d.get("six")) + str({**d, "two": 0}))'
    ),
    "own lists": "x = [3, 1]\nx.sort()\nx.insert(0, 9)\nx[1] = 7\nx += (5,)\nout.append(str(x))",
    "aliases": "x = []\ny = x\ny.append(1)\nout.append(str(x))",
    "an iterator is used up": (
        "z = zip([1, 2], [3, 4])\nout.append(str(list(z)))\nout.append(str(list(z)))"
    ),
    "methods of text": 'out.append(" a,b ".strip().upper().split(",")[1].rjust(3, "."))',
    "assertions that hold": 'assert NUMBERS["one"] == 1, "no"\nout.append("a")',
    "assignment expressions": "out.append(str((n := 3) + n))",
    "conditional imports": 'import functools as f\nfrom functools import wraps\nout.append("a")',
    "leaving a turn early": 'out.append(in_turn(s, "who: ", "hi"))',
    "several contexts": (
        'with s.assistant(), s.var_scope("v"):\n    s += sgl.gen("g")\nout.append(s["v"])'
    ),
    "shadowed builtins": 'len = lambda x: "long"\nout.append(len("a"))',
    "none is none": 'out.append("a" if NUMBERS.get("z") is None else "b")',
    "a state by another name": 't = s\nt += "by t "\nstates = [s, t]\nstates[1] += "by list "',
}


@pytest.mark.parametrize("case", CASES)
def test_python_means_what_it_means(case: str) -> None:
    body = "".join(f"    {line}\n" for line in CASES[case].splitlines())
    source = BEGIN + body + '    s += topic + ": " + "; ".join(out)\n    return out\n'
    first, second = load(source), load(source)
    compiled = second["program"].compile(passes=())
    explained = compiled.explain()
    assert explained.compiled == "whole", str(explained)
    for topic in ("tea", "{0} %s"):
        expected = outcome(first["program"], {"topic": topic})
        assert expected.error is None
        assert outcome(compiled, {"topic": topic}) == expected


ERRORS = {
    "unbound": "if not WORDS:\n    late = 1\nout.append(str(late))",
    "undefined": "out.append(undefined)",
    "wrong arguments": 'greet()\nout.append("a")',
    "too many": "a, b = [1, 2, 3]",
    "no attribute": "out.append(WORDS.nothing)",
    "no method": 'out.append("a".nothing())',
    "no index": "out.append(WORDS[7])",
    "a bad regex": 's += sgl.gen("x", regex="(")',
    "no choices": 's += sgl.select("x", [])',
    "a bad join": "g = s.fork(2)\ng.join('sideways')",
    "a role in a role": 'with s.user():\n    s += sgl.user("x")',
    "a number and a text": 'out.append(1 + "a")',
    "endless recursion": "f = lambda n: f(n)\nout.append(f(1))",
    "fork of nothing": "s.fork(0)",
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_pythons_own(case: str) -> None:
    body = "".join(f"    {line}\n" for line in ERRORS[case].splitlines())
    source = BEGIN + body + '    s += "; ".join(out)\n'
    first, second = load(source), load(source)
    expected = outcome(first["program"], {"topic": "tea"})
    assert expected.error is not None
    assert outcome(second["program"].compile(), {"topic": "tea"}) == expected
