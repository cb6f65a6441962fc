"""Translation of EBNF (xgrammar's, as SGLang's servers accept) and GBNF to Lark.

A rule that is not recursive becomes one regular expression. Recursive rules become Lark rules that
contain such expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.limits import Limits

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)|(?P<name>[A-Za-z_][\w-]*)|(?P<is>::=)|(?P<look>\(=)
    |(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<set>\[\^?(?:\\.|[^\]\\])*\])
    |(?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\})|(?P<sign>[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)
_STARTS_EBNF = re.compile(r"(?:\s|#[^\n]*\n|//[^\n]*\n)*[A-Za-z_][\w-]*\s*::=")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_NAMED = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_LITERAL = set("\\\"'[]-^/.+*?(){}|$")
_RANGE = "\ue000-"
"""Private character for the dash in a range such as `a-z`, to tell it from a literal dash."""

_Token = tuple[str, str]


@dataclass(frozen=True)
class _Part:
    """Translated part of a rule: a regular expression, or Lark if it refers to a recursive rule."""

    text: str
    regular: bool = True

    def as_lark(self) -> str:
        if not self.regular:
            return self.text
        return f"/{self.text}/" if self.text else '""'


def is_ebnf(grammar: str) -> bool:
    """Return True if the grammar defines its first rule with `::=`."""
    return _STARTS_EBNF.match(grammar) is not None


def to_lark(grammar: str, limits: Limits) -> str:
    """Translate an EBNF grammar to a Lark grammar that matches the same texts.

    Raises:
        InvalidParamsError: a rule is missing or defined twice, or a part of the grammar is
            malformed or not supported.
        LimitError: the grammar has too many rules, or its translation is too long.
    """
    bodies = _bodies(grammar)
    limits.check("max_grammar_rules", len(bodies), f"the grammar has {len(bodies):,} rules")
    if "root" not in bodies:
        raise InvalidParamsError(
            f"grammar has no rule named root; its rules are {', '.join(bodies)}"
        )
    try:
        return _Translator(bodies, limits).lark()
    except RecursionError as e:
        raise InvalidParamsError("grammar is nested too deeply") from e


def _bodies(grammar: str) -> dict[str, list[_Token]]:
    """Map the name of each rule to the tokens of its body.

    Raises:
        InvalidParamsError: a rule is defined twice, or a character is not supported.
    """
    tokens = _tokens(grammar)
    bodies: dict[str, list[_Token]] = {}
    body: list[_Token] = []
    for i, (kind, text) in enumerate(tokens):
        if kind == "name" and tokens[i + 1 : i + 2] == [("is", "::=")]:
            if text in bodies:
                raise InvalidParamsError(f"grammar defines the rule {text} twice")
            body = bodies[text] = []
        elif kind != "is":
            body.append((kind, text))
    return bodies


def _tokens(grammar: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(grammar):
        match = _TOKEN.match(grammar, at)
        if match is None or match.lastgroup == "look":
            what = "look-ahead, (= …)," if match else repr(grammar[at : at + 12])
            line = grammar.count("\n", 0, at) + 1
            raise InvalidParamsError(f"grammar at line {line}: {what} is not supported in EBNF")
        if match.lastgroup not in (None, "space"):
            found.append((str(match.lastgroup), match[0]))
        at = match.end()
    return found


class _Translator:
    def __init__(self, bodies: Mapping[str, Sequence[_Token]], limits: Limits) -> None:
        self._bodies = bodies
        self._limits = limits
        self._size = 0
        self._recursive = _recursive(bodies)
        self._parts: dict[str, _Part] = {}
        self._names = {name: f"rule_{i}" for i, name in enumerate(bodies)}
        self._names["root"] = "start"

    def lark(self) -> str:
        wanted = ["root", *sorted(self._recursive - {"root"})]
        return "\n".join(f"{self._names[n]}: {self._body(n).as_lark()}" for n in wanted) + "\n"

    def _body(self, name: str) -> _Part:
        if name not in self._parts:
            reader = _Reader(name, self._bodies[name], self._reference)
            self._parts[name] = reader.whole()
        return self._parts[name]

    def _reference(self, name: str) -> _Part:
        if name not in self._bodies:
            raise InvalidParamsError(f"grammar has no rule named {name}")
        if name in self._recursive:
            return _Part(self._names[name], regular=False)
        part = self._body(name)
        self._size += len(part.text)  # a rule is written out wherever it is named
        written = f"the grammar, written out, has {self._size:,} characters"
        self._limits.check("max_grammar_chars", self._size, written)
        return part


class _Reader:
    """Parser of one rule's body, by recursive descent.

    Args:
        reference: translates the name of another rule.
    """

    def __init__(
        self, rule: str, tokens: Sequence[_Token], reference: Callable[[str], _Part]
    ) -> None:
        self._rule = rule
        self._tokens = tokens
        self._reference = reference
        self._at = 0

    def whole(self) -> _Part:
        part = self._choice()
        if self._at < len(self._tokens):
            raise self._error(f"unexpected {self._tokens[self._at][1]!r}")
        return part

    def _choice(self) -> _Part:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        if len(branches) == 1:
            return branches[0]
        if all(b.regular for b in branches):
            return _Part(f"(?:{'|'.join(b.text for b in branches)})")
        return _Part(f"({' | '.join(b.as_lark() for b in branches)})", regular=False)

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._tokens) and self._tokens[self._at][1] not in ("|", ")"):
            part = self._repeated(self._item())
            if parts and parts[-1].regular and part.regular:
                part = _Part(parts.pop().text + part.text)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return _Part(" ".join(p.as_lark() for p in parts), regular=not parts)

    def _item(self) -> _Part:
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "text":
            return _Part("".join(map(_written, self._characters(text[1:-1]))))
        if kind == "set":
            return _Part(self._set(text[1:-1]))
        if kind == "name":
            return self._reference(text)
        if text == ".":
            return _Part(r"[^\n]")
        if text == "(":
            inside = self._choice()
            if not self._take(")"):
                raise self._error("a parenthesis is not closed")
            return _Part(
                f"(?:{inside.text})" if inside.regular else f"({inside.text})", inside.regular
            )
        raise self._error(f"nothing to repeat before {text!r}")

    def _repeated(self, part: _Part) -> _Part:
        while self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind != "count" and text not in ("*", "+", "?"):
                break
            self._at += 1
            count = re.sub(r"\s", "", text)
            inside = f"(?:{part.text})" if part.regular else f"({part.text})"
            part = _Part(inside + count, part.regular)
        return part

    def _set(self, text: str) -> str:
        negated = text.startswith("^")
        written: list[str] = []
        characters = list(self._characters(text[negated:], in_set=True))
        if not characters:
            raise self._error("an empty set of characters")
        for low, dash, high in zip(characters, characters[1:], characters[2:], strict=False):
            if dash == _RANGE and low > high:
                raise self._error(f"the range {low}-{high} runs backwards")
        for character in characters:
            written.append("-" if character == _RANGE else _written(character))
        return f"[{'^' if negated else ''}{''.join(written)}]"

    def _characters(self, text: str, in_set: bool = False) -> Iterator[str]:
        """Yield the characters of a text or set; an escape gives the character that it stands for.

        In a set, a dash between two characters is yielded as `_RANGE`.
        """
        at = 0
        while at < len(text):
            escape = _ESCAPE.match(text, at)
            if escape is not None:
                yield self._escaped(escape)
                at = escape.end()
            else:
                inner = in_set and text[at] == "-" and 0 < at < len(text) - 1
                yield _RANGE if inner else text[at]
                at += 1

    def _escaped(self, escape: re.Match[str]) -> str:
        code = escape[1] or escape[2] or escape[3]
        if code is not None:
            return chr(int(code, 16))
        letter = escape[4]
        if letter not in _NAMED and letter not in _LITERAL:
            raise self._error(f"the escape \\{letter} is not supported")
        return _NAMED.get(letter, letter)

    def _take(self, sign: str) -> bool:
        found = self._tokens[self._at : self._at + 1] == [("sign", sign)]
        self._at += found
        return found

    def _error(self, what: str) -> InvalidParamsError:
        return InvalidParamsError(f"grammar, rule {self._rule}: {what}")


def _recursive(bodies: Mapping[str, Sequence[_Token]]) -> set[str]:
    """Find the rules that refer to themselves, directly or through other rules.

    These are the strongly connected components that have a cycle (Tarjan 1972, without recursion).
    """
    calls = {name: [t for k, t in body if k == "name"] for name, body in bodies.items()}
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    done: set[str] = set()
    found: set[str] = set()
    for root in calls:
        waiting = [] if root in number else [(root, iter(calls[root]))]
        while waiting:
            name, called = waiting[-1]
            if name not in number:
                number[name] = lowest[name] = len(number)
                stack.append(name)
            inner = next((c for c in called if c in calls and c not in done), None)
            if inner is None:
                waiting.pop()
                if waiting:
                    lowest[waiting[-1][0]] = min(lowest[waiting[-1][0]], lowest[name])
                if lowest[name] == number[name]:
                    component = stack[stack.index(name) :]
                    del stack[-len(component) :]
                    done.update(component)
                    if len(component) > 1 or name in calls[name]:
                        found.update(component)
            elif inner in number:
                lowest[name] = min(lowest[name], number[inner])
            else:
                waiting.append((inner, iter(calls[inner])))
    return found


def _written(character: str) -> str:
    return character if character.isalnum() else f"\\x{{{ord(character):x}}}"
