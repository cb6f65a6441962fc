"""References of a sentence to other text, found by its words. English only.

A sentence may refer to earlier text, to later text, or to a noun that has to be introduced. The
rules are cautious: a word that might refer to earlier text counts as a reference. Only
*instructions* (`is_instruction`) may move at all; a statement, a question or text in another
language may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sgl_mlx.compiler.reorder.sentences import LIST_MARK, SLOT

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|`[^`]*`|```.*?```", re.DOTALL)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_INSTRUCTION = _set(
    """
    act add address analyse analyze answer apply assess calculate check compute correct detect
    determine discuss edit ensure expand highlight outline recommend remove replace rewrite
    shorten assign assume avoid base be break cite choose classify close compare consider
    convert count create decide define describe do don't don’t draft estimate evaluate explain
    extract fill find focus follow format generate give grade identify ignore imagine include
    keep label leave limit list look make mark mention name never always note only order
    organize output paraphrase pick please point predict prefer present produce propose prove
    provide put quote rank rate read refrain refer reply report respond return review round say
    score select separate show sign simplify solve sort speak spell state stay stick structure
    suggest summarize summarise tag take tell think translate treat try use verify work write
    you your if when whenever for in
    """
)
_PROHIBITION = re.compile(r"(?:please )?(?:never|avoid|don['’]t|do not)\b", re.IGNORECASE)
_POSITION = _set("begin continue complete go proceed repeat restart resume start")
"""Instructions whose meaning depends on their place in the prompt."""

_PRONOUNS = _set(
    """
    it its itself they them their theirs themselves he him his himself she her hers herself these
    those this such both either neither former latter ones here above aforementioned earlier
    previous previously preceding again same so next later remaining remainder rest below now
    foregoing aforesaid
    """
)
_CONNECTIVES = _set(
    """
    then next afterwards afterward finally lastly second secondly third thirdly also additionally
    moreover furthermore besides however but yet still instead otherwise therefore thus hence
    consequently and or nor nevertheless nonetheless similarly likewise alternatively conversely
    except unless until once after else too further
    """
)
_FUNCTION = _set(
    """
    a about after all also among an and any are as at be been before below between both but by can
    could did do does during each every few for from given had has have how if in into is it its
    least may might more most must nor not of off on or our out over own shall should so some such
    than that the their then there these they this those through to under unless until up upon was
    were what when where which while who whose will with without would you your
    """
)
_PREPOSITIONS = _set("of in for with to on about from by at after before into over like as than do")
_OWN = _set(
    """
    answer answers reply replies response responses output result results reader readers past
    present future active passive imperative metric following
    """
)
"""Nouns that may follow "the" without having been introduced."""

_THAT_CLAUSE = _set(
    """
    is are was were has have had can could will would must may might should do does did not a an
    the you we i no none nothing nobody every everyone each some any all
    """
)
_THAT_VERB = _set("assume note ensure check sure remember say state show verify mean and or so")

_ANTECEDENT = re.compile(
    r"\bthere (?:is|are|was|were)\b|\b(?:is|are) there\b"  # "if there is a table, keep it"
    r"|\b(?:a|an|any|each|every|one) [\w-]+ (?:and|or|with) (?=its\b)",  # "a number and its unit"
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"\b(?:its|their|his|her|the same) own\b|\b(?:those|these) (?:that|who|which|whose)\b"
    r"|\bso that\b|\bstep by step\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"\b(?:everything|anything|whatever|all|text|part|what|lines?|sentences?|words?)"
    r"(?: (?:that|which))?(?: (?:comes?|came|stands?|is|was|are|were|written))?"
    r" (?:before|after|until)\b"
    r"|\b(?:before|after)\s*(?:[.,;:!]|$)|\bat the (?:end|beginning|start|top|bottom)\b"
    r"|\bin that case\b|\b(?:so|thus) far\b|\bup to (?:here|now)\b|\bof the (?:two|three|four)\b",
    re.IGNORECASE,
)
_FORWARD = re.compile(r"\b(?:following|as follows|next|coming)\b", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"\b(?:below|later on|further down|at the (?:end|bottom)|underneath|after (?:this|it))\b",
    re.IGNORECASE,
)
_DEFINITE = re.compile(r"\b(?:the|my|our)\s+(?=\w)", re.IGNORECASE)
_EACH = re.compile(r"(?<!, )\b(?:each|every)\s+(?=\w)", re.IGNORECASE)
_LABEL = re.compile(
    r"([^\n:.!?" + SLOT.pattern[1:-1] + r"]+):\s*(?:```\w*\s*|[\"“'`]+\s*)?" + SLOT.pattern
    + r"|\bhere (?:is|are) ([^\n:.!?]+?)\s*" + SLOT.pattern
    + r"|\b(?:the|my|our) ([\w ]+?) (?:is|are) " + SLOT.pattern
    + r"|<([A-Za-z][\w-]*)[^<>]*>[^<>]*?" + SLOT.pattern,
    re.IGNORECASE,
)  # fmt: skip


def words_of(text: str) -> list[str]:
    """List the words of a text in lower case, without words in quotes."""
    return [word.lower() for word in _WORD.findall(_QUOTED.sub(" ", text))]


def stems(text: str) -> frozenset[str]:
    """Return the words that carry meaning, without the endings of plural and genitive."""
    return frozenset(_stem(w) for w in words_of(text) if w not in _FUNCTION)


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word)
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def is_instruction(text: str) -> bool:
    """Tell whether a sentence begins with an instruction to the model and asks no question."""
    first = next(iter(words_of(LIST_MARK.sub("", text, count=1))), "")
    return first in _INSTRUCTION and not text.endswith("?")


def is_prohibition(text: str) -> bool:
    """Tell whether a sentence begins by forbidding something ("never ...", "do not ...")."""
    return (
        re.match(r"(?:please )?(?:never|avoid|don['’]t|do not)\b", text, re.IGNORECASE) is not None
    )


def connects(text: str) -> bool:
    """Tell whether a sentence begins with a word such as "then", which joins it to the last one."""
    words = words_of(text)
    return bool(words) and words[0] in _CONNECTIVES


def points_back(text: str) -> str | None:
    """Return a word that refers to earlier text or to a place in the prompt; None if there is none.

    In a sentence that announces the text after it (by a colon or "the following"), "this" and
    "these" do not count.
    """
    text = _HARMLESS.sub(" ", _QUOTED.sub(" ", text))
    place = _PLACE.search(text)
    if place:
        return place[0]
    own = _ANTECEDENT.search(text)
    announced = {"these", "this"} if announces(text) else set()
    for match in _WORD.finditer(text):
        word = match[0].lower()
        resolved = own is not None and own.end() <= match.start() and word in ("it", "its")
        if word in _POSITION and match.start() == 0:
            return word
        if word in _PRONOUNS and word not in announced and not resolved:
            return word
        if word == "that" and _demonstrative(text, match):
            return word
    return None


def _demonstrative(text: str, that: re.Match[str]) -> bool:
    """Tell whether "that" is a pronoun, not the beginning of a clause ("a text that is short")."""
    listed = LIST_MARK.match(text) is not None
    before, after = words_of(text[: that.start()]), words_of(text[that.end() :])
    comma = re.search(r"[.,;:]\s*$", text[: that.start()])
    ends = not re.match(r"\s*\w", text[that.end() :])
    if ends or not before or comma or before[-1] in _PREPOSITIONS:
        return True
    verb = after[0] in _THAT_CLAUSE or re.search(r"[^s]s$|ed$", after[0]) is not None
    noun = len(before) > 1 or listed  # not the verb of an instruction: "repeat that list"
    plural = len(before[-1]) > 3 and before[-1].endswith("s")
    return not (before[-1] in _THAT_VERB or (noun and (plural or verb)))


def announces(text: str) -> bool:
    """Tell whether a sentence announces the text right after it, by a colon or "following"."""
    return text.endswith(":") or _FORWARD.search(_QUOTED.sub(" ", text)) is not None


def points_ahead(text: str) -> bool:
    """Tell whether a sentence refers to text further down or to a place in the prompt."""
    text = _QUOTED.sub(" ", text)
    return _ELSEWHERE.search(text) is not None or _PLACE.search(text) is not None


def definites(text: str) -> Iterator[frozenset[str]]:
    """Iterate over the nouns that the sentence takes as known ("the article"), as sets of stems.

    Left out are nouns that need no introduction ("the reader", "the third person") and the first
    noun of "the name of ...". An empty set stands for a phrase without a noun.
    """
    return _noun_phrases(_DEFINITE, text)


def distributives(text: str) -> Iterator[frozenset[str]]:
    """Iterate over the nouns after "each" or "every" ("each finding"), as sets of stems.

    In ", each with ...", "each" refers to the text before the comma, so this form is left out.
    """
    return _noun_phrases(_EACH, text)


def _noun_phrases(begin: re.Pattern[str], text: str) -> Iterator[frozenset[str]]:
    text = _QUOTED.sub(" , ", text)
    for match in begin.finditer(text):
        phrase = re.match(r"[\w'’ -]*", text[match.end() :])
        words = words_of(phrase[0]) if phrase else []
        nouns = [word for word in words[: _extent(words)] if word != "given"]
        of_what = words[_extent(words) : _extent(words) + 1] == ["of"]
        person = words[:1] in (["first"], ["second"], ["third"]) and words[1:2] == ["person"]
        if not (of_what or person or (nouns and nouns[0] in _OWN)):
            yield frozenset(map(_stem, nouns))


def _extent(words: list[str]) -> int:
    """Count the words of the noun phrase at the beginning: at most three, not counting "given"."""
    start = 1 if words[:1] == ["given"] else 0
    ends = (i for i, word in enumerate(words) if i >= start and word in _FUNCTION)
    return min(next(ends, len(words)), start + 3)


def labels(text: str) -> tuple[frozenset[str], ...]:
    """Return the stems of each argument's heading: "Article: ...", "Here is a question ..."."""
    found = (next(filter(None, match.groups()), "") for match in _LABEL.finditer(text))
    return tuple(stems(name.rsplit("\n", 1)[-1]) - {"here"} for name in found)
