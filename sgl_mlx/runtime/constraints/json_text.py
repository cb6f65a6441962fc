"""A JSON constraint that rules out duplicate keys and endless numbers; a grammar alone cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from sgl_mlx.runtime.constraints.constraint import Constraint
from sgl_mlx.runtime.constraints.json_place import Place
from sgl_mlx.runtime.constraints.vocabulary import GrammarVocabulary

MOST_DIGITS = 19
"""Most consecutive digits of a number: 19 digits fit in 64 bits, and a float keeps fewer."""
MOST_EXPONENT_DIGITS = 2
"""Most digits of an exponent, so that every number is finite as a float."""

_MOST_STEPS = 200
"""Most steps of a search for an unused key; after these, such a key is assumed to exist."""

Bits = NDArray[np.uint8]


class JsonText(Constraint):
    """Constraint that keeps text to a JSON schema, without duplicate keys or endless numbers.

    A comma is not allowed if the object already has every key that may follow. A run of digits in
    a number has at most `MOST_DIGITS` digits, and in an exponent `MOST_EXPONENT_DIGITS`; a longer
    run is allowed only where the schema leaves no other way to go on.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: GrammarVocabulary) -> None:
        super().__init__(matcher)
        self._vocabulary = vocabulary
        self._place = Place()
        self._stuck = False
        self._known: dict[tuple[int, int, bytes], bool] = {}

    def copy(self) -> JsonText:
        same = JsonText(self._matcher.deep_copy(), self._vocabulary)
        same._place, same._stuck = self._place.after(b""), self._stuck
        same._known = self._known.copy()
        return same

    @property
    def error(self) -> str | None:
        if self._stuck:
            return "each key that the schema leaves is in the object already"
        return super().error

    def allowed(self) -> bytes:
        mask = super().allowed()
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        self._end_number(bits)
        for token in list(self._doubtful(self._place, bits)):
            place = self._place.after(self._vocabulary.spelled[token])
            bits[token] = self._leaves_a_key(place, self._matcher, [token])
        self._stuck = not bits.any() and super().error is None
        return np.packbits(bits, bitorder="little").tobytes()

    def accept(self, token: int) -> None:
        super().accept(token)
        self._place.read(self._vocabulary.spelled[token])

    def forced(self) -> list[int]:
        if self.complete:
            return []
        tokens = list(self._matcher.compute_ff_tokens())
        place = self._place
        for i, token in enumerate(tokens):
            place = place.after(self._vocabulary.spelled[token])
            if not self._leaves_a_key(place, self._matcher, tokens[: i + 1]):
                tokens = tokens[:i]
                break
        taken = tokens[: self._matcher.try_consume_tokens(tokens)] if tokens else []
        for token in taken:
            self._place.read(self._vocabulary.spelled[token])
        return taken

    # -- numbers ------------------------------------------------------------------------------

    def _end_number(self, bits: Bits) -> None:
        """Clear the bits of tokens with too many digits, in place, if other tokens remain."""
        most = MOST_EXPONENT_DIGITS if self._place.exponent else MOST_DIGITS
        longer = self._vocabulary.longest_digits + self._place.digits > most
        if longer and (self._place.digits or self._place.exponent):
            starts, counts = self._vocabulary.digits
            kept = bits.copy()
            kept[starts[counts + self._place.digits > most]] = 0
            if kept.any():
                bits[:] = kept

    # -- keys ---------------------------------------------------------------------------------

    def _doubtful(self, place: Place, bits: Bits) -> Iterator[int]:
        """Find the allowed tokens that may lead to a duplicate key and so must be checked."""
        if not place.has_keys:
            return
        table = self._vocabulary
        if place.keys:
            yield from _in(table.quotes, bits)
            yield from (t for t in self._within_keys(place) if bits[t])
            yield from _in(table.escapes, bits)
        elif place.in_string:
            yield from _in(table.quote_then_comma, bits)
        else:
            yield from _in(table.commas, bits)

    def _within_keys(self, place: Place) -> Iterator[int]:
        """Find the tokens that continue the current key towards one of the object's other keys."""
        begun = place.begun
        for key in place.keys:
            raw = json.dumps(key, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass")
            if raw.startswith(begun):
                for end in range(len(begun) + 1, len(raw) + 1):
                    yield from self._vocabulary.ids.get(raw[len(begun) : end], ())

    def _leaves_a_key(self, place: Place, matcher: LLMatcher, tokens: list[int]) -> bool:
        """Return True if the text can go on without a duplicate key, as far as a search can tell.

        Args:
            place: the place after `tokens`.
            matcher: the grammar's state before `tokens`; not changed.
        """
        if place.repeated:
            return False
        if not place.may_repeat:
            return True
        begun = place.begun if place.in_string else b'"'
        known = (place.object, len(place.keys), begun)
        if known not in self._known:
            self._known[known] = _Search(self._vocabulary).finds_a_key(place, matcher, tokens)
        return self._known[known]


class _Search:
    """One search for whether the grammar still allows a key that the object does not have.

    After `_MOST_STEPS` steps the answer is yes without proof.
    """

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        self._spelled = vocabulary.spelled
        self._steps = 0

    def finds_a_key(self, place: Place, matcher: LLMatcher, tokens: list[int]) -> bool:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            return True
        ahead = matcher.deep_copy()
        if ahead.try_consume_tokens(tokens) < len(tokens):
            return False
        mask = np.frombuffer(ahead.compute_bitmask(), np.uint8)
        further: list[tuple[int, Place]] = []
        for token in np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist():
            then = place.after(self._spelled[token])
            if not then.repeated and not then.may_repeat:
                return True
            if not then.repeated:
                further.append((token, then))
        return any(self.finds_a_key(then, ahead, [token]) for token, then in further)


def _in(tokens: NDArray[np.intp], bits: Bits) -> list[int]:
    found: list[int] = tokens[bits[tokens] == 1].tolist()
    return found
