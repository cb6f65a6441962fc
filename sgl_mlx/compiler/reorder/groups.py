"""Groups of sentences that belong together and keep their order when a prompt is reordered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sgl_mlx.compiler.reorder import references as refers
from sgl_mlx.compiler.reorder.sentences import SLOT, Sentence

_FIELD_WORDS = 5
_HEADING_WORDS = 4


@dataclass(frozen=True)
class Group:
    """Sentences that stay together; `members` are their positions in the passage, in order."""

    members: range
    sentences: tuple[Sentence, ...]

    @property
    def constant(self) -> bool:
        return all(sentence.constant for sentence in self.sentences)

    @property
    def first(self) -> str:
        return self.sentences[0].text

    @cached_property
    def labels(self) -> tuple[frozenset[str], ...]:
        return refers.labels("".join(s.text + s.gap for s in self.sentences))

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset().union(*(refers.stems(s.text) for s in self.sentences))


def groups_of(sentences: Sequence[Sentence]) -> tuple[Group, ...]:
    """Divide the sentences of a passage into groups, in order."""
    starts = [0] + [i for i in range(1, len(sentences)) if not _glued(sentences, i)]
    ends = [*starts[1:], len(sentences)]
    spans = [range(a, b) for a, b in zip(starts, ends, strict=True) if a < b]
    return tuple(Group(span, tuple(sentences[i] for i in span)) for span in spans)


def _glued(sentences: Sequence[Sentence], i: int) -> bool:
    """Tell whether sentence `i` has to stay directly after the sentence before it."""
    before, here = sentences[i - 1], sentences[i]
    return (
        here.listed
        or (_in_list(sentences, i - 1) and "\n" not in before.gap)
        or refers.announces(before.text)
        or refers.points_ahead(before.text)
        or refers.connects(here.text)
        or refers.points_back(here.text) is not None
        or _unfinished(before)
        or not any(map(str.isalnum, SLOT.sub("x", here.text)))
        or (_is_field(before) and _is_named(here) and before.gap.count("\n") == 1)
        or _in_section(sentences, i)
    )


def _in_list(sentences: Sequence[Sentence], i: int) -> bool:
    """Tell whether sentence `i` stands on the line of a list item."""
    while i > 0 and "\n" not in sentences[i - 1].gap:
        i -= 1
    return sentences[i].listed


def _unfinished(sentence: Sentence) -> bool:
    """Tell whether a sentence has no end mark: a heading without colon, a separator, a fragment."""
    if sentence.listed or not sentence.constant or _is_field(sentence):
        return False
    return sentence.text[-1] not in ".!?…`>\"'”’)]"


def _is_field(sentence: Sentence) -> bool:
    """Tell whether a sentence is a field of a record: `Name: something` on one line."""
    return _is_named(sentence) and not sentence.text.endswith(":")


def _is_named(sentence: Sentence) -> bool:
    name, colon, _ = sentence.text.partition(":")
    return bool(colon) and len(name.split()) <= _FIELD_WORDS and "\n" not in sentence.text


def _in_section(sentences: Sequence[Sentence], i: int) -> bool:
    """Tell whether sentence `i` belongs to a section that a heading before it begins.

    A section under a Markdown heading ends at the next such heading, any other at a blank line.
    """
    for j in range(i - 1, -1, -1):
        text, gap = sentences[j].text, sentences[j].gap
        if text.startswith("#"):
            return not sentences[i].text.startswith("#")
        if gap.count("\n") > 1 and not any(s.text.startswith("#") for s in sentences[:j]):
            return False
        if _is_heading(text) and "\n" in gap:
            return not sentences[i].listed and not any(s.listed for s in sentences[j + 1 : i])
        if not sentences[j].constant and not text.startswith("#"):
            return any(s.text.startswith("#") for s in sentences[:j])
    return False


def _is_heading(text: str) -> bool:
    return text.endswith(":") and len(text.split()) <= _HEADING_WORDS
