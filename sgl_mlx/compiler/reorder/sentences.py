"""Text of a program cut into sentences, and put together again in another order.

A sentence here is what may move as a whole: a sentence, a heading, an item of a list, a fenced or
tagged passage. What a run fills in is one *slot* character each (private use area of Unicode), so
that text with arguments is a plain string. Knows no graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FIRST_SLOT, LAST_SLOT = "\ue000", "\uf8ff"
SLOT = re.compile(f"[{FIRST_SLOT}-{LAST_SLOT}]")

LIST_MARK = re.compile(r"(?:[-*•–]|\(?(?:\d{1,2}|[a-z]|[ivx]+)[.)])\s")
# Between these nothing is cut; the pair of a tag is found by its name.
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
    """`text` has no white space around it; `gap` is the white space up to the next sentence."""

    text: str
    gap: str = ""

    @property
    def constant(self) -> bool:
        return SLOT.search(self.text) is None

    @property
    def listed(self) -> bool:
        """It is an item of a list."""
        return LIST_MARK.match(self.text) is not None


@dataclass(frozen=True)
class Passage:
    """Sentences with the white space before the first; the last one's gap ends the passage."""

    before: str
    sentences: tuple[Sentence, ...]

    def render(self, order: Sequence[int]) -> str:
        """The text with its sentences in this order.

        Sentences that stay neighbours keep their gap. New neighbours get the wider one of the gap
        that the first had after it and the gap that the second had before it, so that what stood
        on a line of its own still does.
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
        """The widest gap: it goes before the former first sentence and after the former last."""
        return max((sentence.gap for sentence in self.sentences[:-1]), key=_width, default=" ")


def _width(gap: str) -> tuple[int, int]:
    return gap.count("\n"), len(gap)


def split(text: str) -> Passage:
    """The sentences of a text; where it is unclear how it is built, all of it is one sentence."""
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
    """Where sentences end and the next ones begin."""
    enclosed = [match.span() for match in _ENCLOSED.finditer(body)]
    found = []
    for match in _BREAK.finditer(body):
        begin, end = match.span()
        begin = end - len(match[0]) + len(match[0].rstrip())  # closing quotes stay
        inside = any(first < end and begin < last for first, last in enclosed)
        if not inside and ("\n" in body[begin:end] or not _goes_on(body[:begin])):
            found.append((begin, end))
    return found


def _goes_on(text: str) -> bool:
    """The full stop at the end belongs to an abbreviation or to a list's mark."""
    return bool(_ABBREVIATION.search(text) or _MARK_ALONE.search(text))


def _balanced(pieces: Sequence[Sentence]) -> list[Sentence]:
    """Pieces joined until quotes and brackets are closed, and lines wrapped within a sentence."""
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
    """A line that ends in mid-sentence, and one that goes on in lower case."""
    ended = last.text[-1] in ".!?:…`>" or SLOT.match(last.text[-1])
    return not (ended or last.listed or piece.listed) and piece.text[0].islower()
