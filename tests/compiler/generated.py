"""Programs of the language as source text, for tests that run them in two ways.

Every program is drawn together with arguments for it. It may fork three deep, join in both modes,
open roles in all forms, call other programs, branch and loop on what was generated, return early,
and leave marks in a list outside of it (`LOG`), which must come exactly once a run.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import strategies as st

import sgl_mlx as sgl

HEAD = """
import sgl_mlx as sgl

LOG = []
FACTS = ["snow", "rain"]
STYLE = {"tone": "plain", "length": "short"}


def note(word):
    LOG.append(word)
    return word


def ask(state, about):
    state += f"About {about}: " + sgl.gen("asked", max_tokens=4)
    return state["asked"]


@sgl.function
def inner(s, what, times=1):
    s += "Inner " + what + "."
    for i in range(times):
        s += f" {i}:" + sgl.gen(f"r{i}", max_tokens=3)
    return s["r0"]


@sgl.function
def judge(s, what):
    s += "A judge reads all of a text before a word is said about it, and then says one. "
    s += what + sgl.gen("verdict", max_tokens=2)


@sgl.function
def program(s, topic, items=("one", "two"), count=2, flag=True):
"""
NAMES = ("a", "b", "c")
_numbers = count()


@dataclass
class Writer:
    """Draws statements; keeps track of what a reader of the program would know."""

    draw: Any
    lines: list[str] = field(default_factory=list)
    fresh: int = 0

    def name(self, prefix: str) -> str:
        self.fresh += 1
        return f"{prefix}{self.fresh}"

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def put(self, indent: int, *lines: str) -> None:
        self.lines += [" " * 4 * indent + line for line in lines]

    # -- expressions ----------------------------------------------------------------------------

    def text(self, state: str, known: list[str]) -> str:
        forms = [
            '"Plain text. "',
            'f"On {topic}: "',
            '"On %s, %d times. " % (topic, count)',
            '"{} and {flag}. ".format(topic, flag=flag)',
            '"The " + topic + "! "',
            '", ".join(items) + ". "',
            'STYLE["tone"] + " and " + FACTS[0] + ". "',
            'f"{count:03d} {topic!s} {topic.upper()} "',
            '("yes " if flag else "no ")',
            'str(count) + " " + str(topic)',
        ]
        if known:
            name = self.pick(*known)
            forms += [
                f'{state}["{name}"]',
                f"f\"<{{{state}['{name}']}}>\"",
                f'"Said: " + {state}["{name}"].strip().title() + ". "',
                f'"%s!" % {state}["{name}"]',
            ] * 2
        return str(self.pick(*forms))

    def ask(self, name: str) -> str:
        return str(
            self.pick(
                f'sgl.gen("{name}", max_tokens=4)',
                f'sgl.gen("{name}", max_tokens=3, stop=".", temperature=0)',
                f'sgl.gen("{name}", choices=["yes", "no " + topic])',
                f'sgl.select("{name}", ["yes", "no"], choices_method=sgl.greedy_token_selection)',
                f'sgl.gen_int("{name}", max_tokens=2)',
            )
        )

    # -- statements -----------------------------------------------------------------------------

    def block(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        for _ in range(self.draw(st.integers(1, 4))):
            self.statement(indent, state, known, depth, role)

    def statement(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        options = [self.plain, self.plain, self.asks, self.asks, self.loop, self.scope, self.helper]
        if not role:
            options += [self.turn, self.turn]
            options += [self.fork, self.nested, self.copy] if depth < 3 else []
        options += [self.decide, self.wordwise, self.effect, self.leave] if known else []
        self.pick(*options)(indent, state, known, depth, role)

    def plain(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        self.put(indent, f"{state} += {self.text(state, known)}")

    def asks(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.name("v")
        self.put(indent, f"{state} += {self.text(state, known)} + {self.ask(name)}")
        known.append(name)

    def turn(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        who, name = self.pick("system", "user", "assistant"), self.name("v")
        said = f"{self.text(state, known)} + {self.ask(name)}"
        form = self.pick("word", "method", "with", "hand")
        if form == "word":
            self.put(indent, f"{state} += sgl.{who}({said})")
        elif form == "method":
            self.put(indent, f"{state}.{who}({said})")
        elif form == "hand":
            self.put(indent, f"{state} += sgl.{who}_begin()", f"{state} += {said}")
            self.put(indent, f"{state} += sgl.{who}_end()")
        else:
            self.put(indent, f"with {state}.{who}():")
            self.put(indent + 1, f"{state} += {said}")
            self.block(indent + 1, state, known, depth, role=True)
        known.append(name)

    def scope(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.name("scope")
        self.put(indent, f'with {state}.var_scope("{name}"):')
        self.asks(indent + 1, state, known, depth, role)
        known.append(name)

    def helper(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        self.put(indent, f"{state} += ask({state}, topic)")
        known.append("asked")

    def loop(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.name("l")
        if self.pick(True, False):
            self.put(indent, "for i in range(count):")
            self.put(indent + 1, f'{state} += f"{{i}}. " + sgl.gen(f"{name}_{{i}}", max_tokens=2)')
            known += [f"{name}_0"]
            return
        self.put(indent, self.pick("for n, item in enumerate(items, 1):", "for item in items:"))
        self.put(indent + 1, f"{state} += item + {self.text(state, known)}")
        if self.pick(True, False):
            self.put(indent + 1, f'{state} += sgl.gen("{name}_" + item, max_tokens=2)')

    def nested(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.name("call")
        said = self.pick("topic", self.text(state, known))
        if known and self.pick(True, False):
            self.put(indent, f"{state} += judge({state}['{self.pick(*known)}'])['verdict']")
            return
        self.put(indent, f"{name} = inner({said}, times={self.pick(1, 2)})")
        self.put(indent, f"{state} += {name}['r0'] + {name}.ret_value")

    def copy(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        branch = self.name("copy")
        self.put(indent, f"with {state}.copy() as {branch}:")
        self.block(indent + 1, branch, list(known), depth + 1, role)

    def fork(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        forks, branch, name = self.name("f"), self.name("br"), self.name("j")
        size = self.pick("2", "count", "len(items)", "len(FACTS)")
        self.put(indent, f"{forks} = {state}.fork({size})")
        form = self.pick("all", "alike", "alike", "each", "called", "loop", "loop")
        asked = f'sgl.gen("{name}", max_tokens=3)'
        if form == "all":
            self.put(indent, f"{forks} += {self.text(state, known)} + {asked}")
        elif form == "alike":
            self.put(indent, f'{forks} += lambda i: f"Of all that is {{topic}}, {{i}}: " + {asked}')
        elif form == "called":
            self.put(indent, f'{forks} += lambda i: f"{{i}} {{topic}} " + {asked}')
        elif form == "each":
            self.put(indent, f"for i, {branch} in enumerate({forks}):")
            self.put(indent + 1, f'{forks}[i] += f"number {{i}} " + {asked}')
        else:
            self.put(indent, f"for {branch} in {forks}.states:")
            self.put(indent + 1, f"{branch} += {asked}")
            self.block(indent + 1, branch, [*known, name], depth + 1, role)
        if self.pick(True, True, False):
            self.put(indent, f"{forks}.join()")
            self.put(indent, f'{state} += " / ".join(t.strip() for t in {state}["{name}"])')
            self.put(indent, f'{state} += {state}["{name}"][0]')
        else:
            self.put(indent, f'{forks}.join("concate_and_append")')

    # -- what only a run knows ------------------------------------------------------------------

    def decide(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.pick(*known)
        test = self.pick(
            f'{state}["{name}"] == "yes"',
            f'"a" in {state}["{name}"]',
            f'len({state}["{name}"]) > 3',
            f'{state}["{name}"].startswith(" ")',
            f'not {state}["{name}"]',
            "topic > 'm'",
        )
        self.put(indent, f"if {test}:")
        self.block(indent + 1, state, list(known), depth, role)
        self.put(indent, "else:")
        self.block(indent + 1, state, list(known), depth, role)

    def wordwise(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        self.put(indent, f'for word in {state}["{self.pick(*known)}"].split()[:2]:')
        self.put(indent + 1, f"{state} += word + {self.text(state, known)}")

    def effect(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.pick(*known)
        form = self.pick(f'note({state}["{name}"])', 'note("word")', "note(topic)")
        self.put(indent, f"{state} += {form}")

    def leave(self, indent: int, state: str, known: list[str], depth: int, role: bool) -> None:
        name = self.pick(*known)
        value = self.pick(
            f'{state}["{name}"]',
            f'{{"x": {state}["{name}"], topic: count}}',
            f'("done", [{state}["{name}"].strip()], items)',
            "None",
        )
        test = self.pick("flag", "not flag", f'{state}["{name}"] == "yes"', "count > 2")
        self.put(indent, f"if {test}:", f"    return {value}")


@st.composite
def programs(draw: Any) -> tuple[str, dict[str, Any]]:
    """The source of a program and arguments for it."""
    writer = Writer(draw)
    known: list[str] = []
    writer.block(1, "s", known, 0, role=False)
    writer.block(1, "s", known, 0, role=False)
    if writer.pick(True, False):
        writer.put(1, f"return {writer.text('s', known)}")
    arguments = {
        "topic": writer.pick("tea", "old maps", "zebras {}", "", "50% %s"),
        "items": writer.pick(("one", "two"), ["x"], ["p", "q", "r"], []),
        "count": writer.pick(1, 2, 3),
        "flag": writer.pick(True, False),
    }
    return HEAD + "\n".join(writer.lines) + "\n", arguments


def load(source: str) -> dict[str, Any]:
    """Execute source text so that `inspect` finds it; the names it defines."""
    file = f"<generated program {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, file, "exec"), names)
    return names


def program_of(source: str) -> sgl.SglFunction:
    """The program called `program` in some source text."""
    found = load(source)["program"]
    assert isinstance(found, sgl.SglFunction)
    return found
