"""Incremental parser of model output into reasoning, text and tool calls.

The result depends only on the whole text, not on how the text is split into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sgl_mlx.server.tools.calls import Call, Tool
from sgl_mlx.server.tools.families import Family

THINK_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
)
"""Pairs of tags around reasoning (`thoughts` in this code) that model families use."""


def think_marks(chat_template: str | None, prompt: str) -> tuple[str, str] | None:
    """Return the model's start and end tag of reasoning; None if none of the known tags is found.

    The result is the first pair in `THINK_MARKS` of which the chat template holds a tag, or whose
    start tag ends the prompt.
    """
    template, tail = chat_template or "", prompt.rstrip()
    for start, end in THINK_MARKS:
        if start in template or end in template or tail.endswith(start):
            return start, end
    return None


@dataclass(frozen=True)
class Piece:
    """A part of an answer: a chunk of reasoning, a chunk of text, or one whole tool call."""

    kind: Literal["reasoning", "text", "call"]
    text: str = ""
    call: Call | None = None


@dataclass(frozen=True)
class Form:
    """How the answers to a request are parsed.

    Attributes:
        thinking: start and end tag of reasoning; None leaves reasoning in the text.
        thinks_first: True if the prompt ends inside reasoning, so that the answer begins with it.
        family: the model family's format of tool calls; None leaves tool calls in the text.
        tools: tools that may be called.
        several: False drops every tool call after the first.
    """

    thinking: tuple[str, str] | None = None
    thinks_first: bool = False
    family: Family | None = None
    tools: Sequence[Tool] = field(default=())
    several: bool = True

    @property
    def plain(self) -> bool:
        """True when neither reasoning nor tool calls are separated from the text."""
        return self.thinking is None and self.family is None


class OutputParser:
    """An incremental parser of one answer.

    White space around reasoning and around tool calls is dropped.

    Attributes:
        calls: number of tool calls found so far, also of dropped ones.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._rest = ""
        self._mark = ""
        self._thought = False
        self._step = self._think if form.thinks_first and form.thinking else self._start
        self.calls = 0

    def add(self, text: str) -> list[Piece]:
        """Parse the next chunk of text; returns the pieces that later text cannot change."""
        self._rest += text
        return list(self._advance())

    def finish(self, cut: bool = False) -> list[Piece]:
        """Parse the text that is left when the answer has ended, and return its pieces.

        Args:
            cut: True if the answer was cut off: an unfinished tool call is then returned as text.
        """
        pieces, rest, step = list(self._advance()), self._rest, self._step
        self._rest = ""
        if step == self._call:
            calls = None if cut else self._calls(rest)
            return pieces + ([Piece("text", self._mark + rest)] if calls is None else calls)
        if step == self._think:
            return pieces + [Piece("reasoning", rest)] * bool(rest.strip())
        is_text = rest.strip() if self.calls or step == self._gap else rest
        return pieces + [Piece("text", rest)] * bool(is_text)

    def _advance(self) -> Iterator[Piece]:
        step = None
        while step != self._step:
            step = self._step
            yield from step()

    def _start(self) -> Iterator[Piece]:
        """Decide whether the answer begins with reasoning, an untagged tool call, or text."""
        thinking, family, seen = self._form.thinking, self._form.family, self._rest.lstrip()
        mark = thinking[0] if thinking else ""
        if mark and seen.startswith(mark):
            self._step, self._rest = self._think, seen[len(mark) :]
        elif family is not None and family.bare and seen.startswith("{"):
            self._step = self._call
        elif seen and not (mark and mark.startswith(seen)):
            self._step = self._text
        return iter(())

    def _think(self) -> Iterator[Piece]:
        assert self._form.thinking is not None
        end = self._form.thinking[1]
        at = self._rest.find(end)
        kept = at if at >= 0 else _held_back(self._rest, (end,))
        thought = self._rest[:kept].rstrip()
        self._rest = self._rest[len(thought) :]
        if not self._thought:
            thought = thought.lstrip()
        if thought:
            self._thought = True
            yield Piece("reasoning", thought)
        if at >= 0:
            self._step, self._rest = self._gap, self._rest.lstrip()[len(end) :]

    def _gap(self) -> Iterator[Piece]:
        """Skip the white space after reasoning or a tool call."""
        self._rest = self._rest.lstrip()
        family = self._form.family
        if self._rest:
            bare = family is not None and family.bare and self._rest.startswith("{")
            self._step = self._call if bare else self._text
        return iter(())

    def _text(self) -> Iterator[Piece]:
        family = self._form.family
        if family is None:
            yield from self._told(len(self._rest))
            return
        found = [(self._rest.find(mark), mark) for mark in family.starts]
        starts = [(at, mark) for at, mark in found if at >= 0]
        kept = min(starts)[0] if starts else _held_back(self._rest, family.starts)
        yield from self._told(len(self._rest[:kept].rstrip()))
        if starts:
            self._mark = min(starts)[1]
            self._step, self._rest = self._call, self._rest.lstrip()[len(self._mark) :]

    def _told(self, end: int) -> Iterator[Piece]:
        text, self._rest = self._rest[:end], self._rest[end:]
        if text:
            yield Piece("text", text)

    def _call(self) -> Iterator[Piece]:
        assert self._form.family is not None
        end = self._form.family.end
        if not end or end not in self._rest:
            return
        body, _, self._rest = self._rest.partition(end)
        calls = self._calls(body)
        yield from [Piece("text", self._mark + body + end)] if calls is None else calls
        self._step = self._text if calls is None else self._gap

    def _calls(self, body: str) -> list[Piece] | None:
        """Parse `body` and return the calls that `Form.several` allows; None if it is malformed."""
        assert self._form.family is not None
        found = self._form.family.calls(body, self._form.tools)
        if not found:
            return None
        allowed = len(found) if self._form.several else max(1 - self.calls, 0)
        self.calls += len(found)
        return [Piece("call", call=call) for call in found[:allowed]]


def _held_back(text: str, marks: Sequence[str]) -> int:
    """Return where an unfinished mark at the end of `text` begins; `len(text)` if there is none."""
    longest = max(map(len, marks))
    for start in range(max(len(text) - longest + 1, 0), len(text)):
        if any(mark.startswith(text[start:]) for mark in marks):
            return start
    return len(text)
