"""The judge of reordering: it decides whether a text keeps its meaning in another order.

No rule can prove that the meaning is kept, so the judge is cautious. It accepts a rewrite only if
all of these rules hold. It checks the rules on the two texts alone, whoever proposed the rewrite.

- *Nothing is lost or added*: the new text consists of the sentences of the old one
  (`sentences.split`), each once and word for word, with white space between them as
  `Passage.render` writes it.
- *Groups stay together* (`groups_of`): a heading or an announcement ("these parts:", "the
  following") with the sentence after it; the items of a list; the fields of a record; a sentence
  that begins with a connective ("then") or points back ("this", "above") with the one before it.
- *Only instructions move up* (`_stays`): a group moves ahead of others only if it has no argument,
  begins with an instruction or a heading, and no sentence in it points back or names a place in the
  prompt. So arguments keep their order, and a question stays after the text that it is about.
- *Instructions keep their order* (`_outruns`), as one may build on another without saying so.
  Prohibitions ("never ...", "do not ...") are an exception: they hold wherever they stand.
- *Definite nouns have been introduced* (`_unknown`): a group that says "the article" or "each
  finding" moves ahead of an argument only if the noun is introduced elsewhere: by exactly one
  heading ("Article: ...") or by earlier text that stays ahead of the group. Such a group never
  moves ahead of other text that says "article" or "finding".
- *The end stays the end*: a cue such as "Answer:", and text that the model continues, stay last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sgl_mlx.compiler.reorder import references as refers
from sgl_mlx.compiler.reorder.groups import Group, groups_of
from sgl_mlx.compiler.reorder.sentences import SLOT, Passage, split


class Order:
    """The groups of sentences of a text, and the rules for which of them may change places.

    Args:
        text: a text in which a slot character (see `sentences`) stands for each argument.
        continued: True if the model continues right after the text, so that its last sentence stays
            last.
    """

    def __init__(self, text: str, continued: bool) -> None:
        self.passage: Passage = split(text)
        self.groups = groups_of(self.passage.sentences)
        self._continued = continued

    def objection(self, mover: int, passed: int) -> str | None:
        """Return why group `mover` may not move ahead of group `passed`; None if `mover` may."""
        return (
            self._stays(mover)
            or self._outruns(mover, passed)
            or self._keeps(passed)
            or self._unknown(mover, passed)
        )

    def render(self, groups: Sequence[int]) -> str:
        """Return the text with its groups in the order of the group numbers `groups`."""
        return self.passage.render([i for group in groups for i in self.groups[group].members])

    def objections(self, order: Sequence[int]) -> Iterator[str]:
        """List the objections to an order of sentences, given as their positions."""
        if sorted(order) != list(range(len(self.passage.sentences))):
            yield "not every sentence occurs once"
            return
        place = {sentence: at for at, sentence in enumerate(order)}
        for group in self.groups:
            first = group.members[0]
            if any(place[i] - place[first] != i - first for i in group.members):
                yield f"{self._quote(first)} is torn from what belongs to it"
        for mover in range(len(self.groups)):
            for passed in range(mover):
                here, there = self.groups[mover].members[0], self.groups[passed].members[0]
                reason = place[here] < place[there] and self.objection(mover, passed)
                if reason:
                    yield f"{self._quote(here)} moves ahead of {self._quote(there)}: {reason}"

    def _quote(self, sentence: int) -> str:
        return repr(SLOT.sub("{}", self.passage.sentences[sentence].text)[:40])

    # -- rules --------------------------------------------------------------------------------

    def _stays(self, mover: int) -> str | None:
        group = self.groups[mover]
        if not group.constant:
            return "it has an argument"
        section = group.first.endswith(":") and len(group.members) > 1
        if not (section or refers.is_instruction(group.first)):
            return "it is no instruction"
        if mover == len(self.groups) - 1 and (self._continued or _is_cue(group.sentences[-1].text)):
            return "the model goes on from it"
        for sentence in group.sentences:
            word = refers.points_back(sentence.text)
            if word or refers.points_ahead(sentence.text):
                return f"{word or sentence.text!r} may point to what it would leave behind"
        return None

    def _outruns(self, mover: int, passed: int) -> str | None:
        prohibits = refers.is_prohibition(self.groups[mover].first)
        if _tells(self.groups[passed]) and not prohibits:
            return "instructions keep their order"
        return None

    def _keeps(self, passed: int) -> str | None:
        """Return an objection if group `passed` refers to text below that its headings do not name.

        None means no objection.
        """
        group = self.groups[passed]
        for sentence in group.sentences:
            if refers.points_ahead(sentence.text):
                known = any(_named(p, group.labels) for p in refers.definites(sentence.text))
                if not known:
                    return "who comes before speaks of what is below"
        return None

    def _unknown(self, mover: int, passed: int) -> str | None:
        """Return an objection if `mover` says "the X" or "each X", and `passed` may introduce X.

        None means no objection.
        """
        group, other = self.groups[mover], self.groups[passed]
        for at, sentence in enumerate(group.sentences):
            for phrase in refers.definites(sentence.text):
                if not self._introduced(phrase, mover, at) or self._met(phrase, other):
                    return f"'the {_spelt(phrase)}' may not be known yet"
            for phrase in refers.distributives(sentence.text):
                told = self._introduced(phrase, mover, at) or not _tells(other)
                if not phrase or not told or self._met(phrase, other):
                    return f"'each {_spelt(phrase)}' may not be known yet"
        return None

    def _introduced(self, phrase: frozenset[str], mover: int, at: int) -> bool:
        """Tell whether a heading or constant text before the group's sentence `at` has the noun."""
        own = self.groups[mover].sentences[:at]
        earlier = [g.stems for g in self.groups[:mover] if g.constant]
        named = _named(phrase, [label for group in self.groups[:mover] for label in group.labels])
        earlier += [refers.stems(sentence.text) for sentence in own]
        return named or any(phrase & stems for stems in earlier)

    def _met(self, phrase: frozenset[str], other: Group) -> bool:
        """Tell whether a group uses the noun, other than in the heading of an argument."""
        labels = [label for group in self.groups for label in group.labels]
        if _named(phrase, other.labels) and _named(phrase, labels):
            texts = (s for s in other.sentences if s.constant and not s.text.endswith(":"))
            return any(phrase & refers.stems(s.text) for s in texts)
        return bool(phrase & other.stems)


def objections(before: str, after: str, continued: bool = False) -> list[str]:
    """List the reasons why `after` may not replace `before`; empty if it may.

    Args:
        before: a text of a program, in which a slot character (see `sentences`) stands for each
            argument.
        after: the proposed text.
        continued: True if the model continues right after the text.
    """
    judge = Order(before, continued)
    order = _positions(judge.passage, after)
    if order is None or judge.passage.render(order) != after:
        return ["it is not made of the same sentences"]
    return list(judge.objections(order))


def _positions(passage: Passage, text: str) -> list[int] | None:
    """Return the order of the sentences of the passage in `text`; None if the two do not match."""
    rest, left, order = text.strip(), list(range(len(passage.sentences))), list[int]()
    while rest:
        starts = [i for i in left if rest.startswith(passage.sentences[i].text)]
        if not starts:
            return None
        # If several sentences fit, take the longest one; among equal ones, the first.
        found = max(starts, key=lambda i: (len(passage.sentences[i].text), -i))
        rest = rest[len(passage.sentences[found].text) :].lstrip()
        left.remove(found)
        order.append(found)
    return None if left else order


# -- words ----------------------------------------------------------------------------------------


def _named(phrase: frozenset[str], labels: Sequence[frozenset[str]]) -> bool:
    """Tell whether exactly one heading fits a phrase.

    A heading fits if the phrase has all of its words. Only if there is no such heading, a
    heading fits if it shares a word with the phrase.
    """
    whole = [label for label in labels if label and label <= phrase]
    shared = [label for label in labels if label & phrase]
    return len(whole or shared) == 1


def _tells(group: Group) -> bool:
    """Tell whether a group has constant text other than announcements of arguments."""
    return any(s.constant and not refers.announces(s.text) for s in group.sentences)


def _spelt(phrase: frozenset[str]) -> str:
    return " ".join(sorted(phrase)) or "..."


def _is_cue(text: str) -> bool:
    return text[-1].isalnum() or text[-1] in ":=-→>"
