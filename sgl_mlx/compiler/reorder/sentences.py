"""Division of a program's texts into sentences, which can be put together in another order.

A sentence here is any unit that may move: a sentence, a heading, a list item, a fenced or tagged
passage. Each argument or variable in the text is one *slot* character (private use area of
Unicode), so that a text with arguments is a plain string. This module does not depend on graphs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FIRST_SLOT, LAST_SLOT = "\ue000", "\uf8ff"
SLOT = re.compile(f"[{FIRST_SLOT}-{LAST_SLOT}]")

LIST_MARK = re.compile(r"(?:[-*•–]|\(?(?:\d{1,2}|[a-z]|[ivx]+)[.)])\s")
# Passages that are never divided: fenced text, quoted text, and text between paired tags.
_ENCLOSED = re.compile(r'```.*?```|""".*?"""|<([A-Za-z][\w-]*)[^<>]*>.*?</\1>', re.DOTALL)
_UNPAIRED = re.compile(r'```|"""|</?[A-Za-z][\w-]*[^<>]*>')
_BREAK = re.compile(
    r"\s*\n\s*|(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*(?:[A-ZÀ-ÞŁŚŻ0-9]|["
    + SLOT.pattern[1:-1]
    + "]))"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|Eq|approx|ca|resp)\.|\b[A-Z]\.)$"
)
_MARK_ALONE = re.compile(r"(?:^|\n)\s*\(?(?:\d{1,2}|[a-z]|[ivx]+)[.)]$")


@dataclass(frozen=True)
class Sentence:
    """A sentence without outer white space, and the white space `gap` before the next one."""

    text: str
    gap: str = ""

    @property
    def constant(self) -> bool:
        return SLOT.search(self.text) is None

    @property
    def listed(self) -> bool:
        """True if the sentence is a list item."""
        return LIST_MARK.match(self.text) is not None


@dataclass(frozen=True)
class Passage:
    """A divided text: the white space before its first sentence, and its sentences."""

    before: str
    sentences: tuple[Sentence, ...]

    def render(self, order: Sequence[int]) -> str:
        """Return the text with its sentences in another order, given by their old positions.

        Two sentences that were neighbours keep the gap between them. New neighbours get the wider
        of two gaps: the one after the first sentence and the one before the second. So a sentence
        that stood on a line of its own still does.
        """
        gaps = [self._gap(here, following) for here, following in pairwise(order)]
        last = [sentence.gap for sentence in self.sentences[-1:]]
        texts = (self.sentences[i].text for i in order)
        pieces = (text + gap for text, gap in zip(texts, gaps + last, strict=True))
        return self.before + "".join(pieces)

    def _gap(self, here: int, following: int) -> str:
        if following == here + 1:
            return self.sentences[here].gap
        after = self.sentences[here].gap if here + 1 < len(self.sentences) else " "
        before = self.sentences[following - 1].gap if following else self._edge
        return max(after, before, " ", key=_width)

    @property
    def _edge(self) -> str:
        """The widest gap, for places before the old first and after the old last sentence."""
        return max((sentence.gap for sentence in self.sentences[:-1]), key=_width, default=" ")


def _width(gap: str) -> tuple[int, int]:
    return gap.count("\n"), len(gap)


def split(text: str) -> Passage:
    """Divide a text into sentences; a text with unpaired fences or tags is one sentence."""
    body = text.strip()
    start = text.index(body) if body else len(text)
    ends = [] if _UNPAIRED.search(_ENCLOSED.sub("", body)) else list(_breaks(body))
    cuts = [(0, 0), *ends, (len(body), len(body))]
    pieces = [
        Sentence(body[begin:end], body[end:after]) for (_, begin), (end, after) in pairwise(cuts)
    ]
    joined = _balanced(pieces) if body else []
    if joined:
        joined[-1] = Sentence(joined[-1].text, text[start + len(body) :])
    return Passage(text[:start], tuple(joined))


def _breaks(body: str) -> list[tuple[int, int]]:
    """List (end of a sentence, beginning of the next) as positions in a text, in characters."""
    enclosed = [match.span() for match in _ENCLOSED.finditer(body)]
    found = []
    for match in _BREAK.finditer(body):
        begin, end = match.span()
        begin = end - len(match[0]) + len(match[0].rstrip())  # keep closing quotes
        inside = any(first < end and begin < last for first, last in enclosed)
        if not inside and ("\n" in body[begin:end] or not _goes_on(body[:begin])):
            found.append((begin, end))
    return found


def _goes_on(text: str) -> bool:
    """Tell whether a text ends in an abbreviation or a list mark, not in the end of a sentence."""
    return bool(_ABBREVIATION.search(text) or _MARK_ALONE.search(text))


def _balanced(pieces: Sequence[Sentence]) -> list[Sentence]:
    """Join pieces until quotes and brackets are closed, and join wrapped lines of a sentence."""
    joined: list[Sentence] = []
    for piece in pieces:
        if joined and (_open(joined[-1].text) or _wrapped(joined[-1], piece)):
            last = joined.pop()
            piece = Sentence(last.text + last.gap + piece.text, piece.gap)
        joined.append(piece)
    return joined


def _open(text: str) -> bool:
    return (
        text.count('"') % 2 == 1
        or text.count("“") > text.count("”")
        or text.count("(") > text.count(")")
        or text.count("[") > text.count("]")
        or text.count("{") > text.count("}")
    )


def _wrapped(last: Sentence, piece: Sentence) -> bool:
    """Tell whether `last` ends in mid-sentence and `piece` continues it in lower case."""
    ended = last.text[-1] in ".!?:…`>" or SLOT.match(last.text[-1])
    return not (ended or last.listed or piece.listed) and piece.text[0].islower()
