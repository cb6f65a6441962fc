"""From Metal to C++: a rewriting of tokens, line by line in place.

Address spaces vanish (`constant` leaves `const`), attributes vanish, literals without a suffix
become floats, and each `threadgroup` variable becomes a reference into memory that all threads of
a threadgroup share. A `threadgroup` that is neither a pointer nor such a variable is refused:
left alone, it would silently become one variable per thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.metal_kernels.emulator.errors import Unsupported

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/|\\\n)
  | (?P<include>\#[ \t]*include[^\n]*|\#[ \t]*pragma[ \t]+(?:once|METAL)[^\n]*)
  | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<mark>::|->|\[\[|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_DROPPED = {"device": "", "thread": "", "kernel": "", "constant": "const"}
_QUALIFIERS = {"const", "volatile", "typename", "unsigned", "signed"}


@dataclass
class Token:
    kind: str
    text: str
    line: int


def rewrite(text: str) -> str:
    """The same program for a C++ compiler with the shim before it; line numbers are kept."""
    tokens = without_attributes(tokens_of(text))
    variables = 0
    out: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.text == "threadgroup":
            declaration = _Declaration(tokens, i)
            if not declaration.is_variable:
                i += 1
                continue
            out.append(declaration.cpp(variables))
            variables += len(declaration.names)
            i = declaration.end
            continue
        out.append(_plain(token))
        i += 1
    return "".join(out)


def tokens_of(text: str) -> list[Token]:
    found, line = [], 1
    for match in _TOKEN.finditer(text):
        found.append(Token(match.lastgroup or "", match[0], line))
        line += match[0].count("\n")
    return found


def without_attributes(tokens: list[Token], keep: str = "") -> list[Token]:
    """`[[...]]` removed, but [[keep]], which becomes the keyword `__keep`."""
    kept: list[Token] = []
    depth = 0
    for token in tokens:
        if depth == 0 and token.text != "[[":
            kept.append(token)
            continue
        if token.kind == "mark":
            depth += token.text.count("[") - token.text.count("]")
        if token.kind == "space":
            kept.append(token)
        elif keep and token.text == keep:
            kept.append(Token("word", f"__{keep}", token.line))
    return kept


def _plain(token: Token) -> str:
    if token.kind == "word":
        return _DROPPED.get(token.text, token.text)
    if token.kind == "number":
        return _number(token.text)
    if token.kind == "include":
        if '"' in token.text:
            raise Unsupported(f"line {token.line}: {token.text}: no such file where MLX compiles")
        return ""
    return token.text


def _number(text: str) -> str:
    lower = text.lower()
    hexadecimal = lower.startswith("0x")
    is_float = "p" in lower if hexadecimal else bool(re.search(r"[.e]", lower))
    if lower.endswith("bf") and not hexadecimal:
        return f"bfloat({text[:-2]}f)"
    if lower.endswith("h"):
        return f"half({text[:-1]}{'' if re.search(r'[.eE]', text) else '.0'}f)"
    return text + "f" if is_float and not lower.endswith("f") else text


class _Declaration:
    """Declaration that follows one `threadgroup` keyword."""

    def __init__(self, tokens: list[Token], at: int) -> None:
        self._tokens, self._line = tokens, tokens[at].line
        self._start, self.end = at, at + 1
        self.names: list[tuple[str, str]] = []
        self._type = self._read_type()
        self.is_variable = self._peek() not in ("*", "&", ">", ")")
        if not self.is_variable:
            return
        if not _starts_statement(tokens, at):
            self._refuse("is neither a pointer nor a variable of the kernel")
        self._read_declarators()

    def cpp(self, number: int) -> str:
        parts = []
        for offset, (name, dimensions) in enumerate(self.names):
            parts.append(
                f"typedef {self._type} emu_type_{name} {dimensions}; emu_type_{name}& {name} = "
                f"*static_cast<emu_type_{name}*>(emu_threadgroup_variable("
                f'{number + offset}, "{name}", sizeof(emu_type_{name})));'
            )
        newlines = sum(t.text.count("\n") for t in self._tokens[self._start : self.end])
        return " ".join(parts) + "\n" * newlines

    def _read_type(self) -> str:
        parts: list[str] = []
        while self._peek() in _QUALIFIERS:
            parts += [self._take(), " "]
        parts.append(self._take())
        while self._peek() in ("::", "<"):
            parts.append(self._balanced("<", ">") if self._peek() == "<" else self._take())
            if parts[-1] == "::":
                parts.append(self._take())
        if self._peek() == "const":
            parts += [" ", self._take()]
        return "".join(parts)

    def _read_declarators(self) -> None:
        while True:
            name, dimensions = self._take(), ""
            while self._peek() == "[":
                dimensions += self._balanced("[", "]")
            self.names.append((name, dimensions))
            mark = self._take()
            if mark == ";":
                return
            if mark != ",":
                self._refuse(f"has {mark!r} after {name}, where ',' or ';' was expected")

    def _balanced(self, opens: str, closes: str) -> str:
        text, depth = "", 0
        while True:
            token = self._take()
            depth += (token == opens) - (token == closes)
            text += token + " "
            if depth == 0:
                return text

    def _peek(self) -> str:
        at = self.end
        while at < len(self._tokens) and self._tokens[at].kind == "space":
            at += 1
        return self._tokens[at].text if at < len(self._tokens) else ""

    def _take(self) -> str:
        while self.end < len(self._tokens):
            token = self._tokens[self.end]
            self.end += 1
            if token.kind != "space":
                return _plain(token)
        self._refuse("reaches the end of the text")
        raise AssertionError

    def _refuse(self, why: str) -> None:
        raise Unsupported(f"line {self._line}: a threadgroup declaration {why}")


def _starts_statement(tokens: list[Token], at: int) -> bool:
    before = [t.text for t in tokens[:at] if t.kind not in ("space", "include")]
    return not before or before[-1] in "{};"
