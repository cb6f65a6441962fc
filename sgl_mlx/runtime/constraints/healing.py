"""Token healing: the end of a prompt is tokenized again together with what the model writes.

A prompt that ends in "http:" ends in the token ":", after which the model hardly ever saw "//"
(it saw "://"). So the last token is taken back and the output has to begin with its text: the
first token is one that spells it or goes beyond it; only where no single token does, one that
spells a part of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge

from sgl_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class TakenBack:
    """The end of a prompt that its output begins with again.

    It belongs to the prompt wherever tokens are counted or listed.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()


NOTHING_TAKEN = TakenBack()


class Healing:
    """The constraint (as in `grammar`) that the output begins with given bytes."""

    def __init__(self, spellings: Spellings, prefix: bytes) -> None:
        self._spellings = spellings
        self._missing = prefix

    @property
    def complete(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        return None

    @property
    def done(self) -> bool:
        """Return whether the bytes are written, so that anything may follow."""
        return not self._missing

    def allowed(self) -> bytes:
        mask = bytearray(self._spellings.mask_bytes)
        for token in self._spellings.starting(self._missing):
            mask[token >> 3] |= 1 << (token & 7)
        return bytes(mask)

    def accept(self, token: int) -> None:
        self._missing = self._missing[len(self._spellings.spelled[token]) :]

    def forced(self) -> list[int]:
        return []


class Spellings:
    """The text of every ordinary token of a vocabulary, sorted for look-up by prefix."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self.mask_bytes = (vocabulary + 31) // 32 * 4
        size = min(vocabulary, tokenizer.vocab_size)
        self.spelled = [tokenizer.token_bytes(token) for token in range(size)]
        ordinary = (t for t in range(size) if self.spelled[t] and not tokenizer.is_special(t))
        self._sorted = _sorted([(self.spelled[t], t) for t in ordinary])
        self._words = [word for word, _ in self._sorted]

    def starting(self, prefix: bytes) -> list[int]:
        """List tokens that begin with the prefix; if none does, tokens that spell its beginning.

        Shorter tokens are not offered beside longer ones: after " " a model seldom goes on as it
        would after " the".
        """
        first = bisect_left(self._words, prefix)
        last = bisect_left(self._words, prefix + b"\xff" * 64)
        beyond = [token for _, token in self._sorted[first:last]]
        if beyond:
            return beyond
        return [t for end in range(1, len(prefix)) for t in self._spelling(prefix[:end])]

    def heals(self, tokens: Sequence[int]) -> TakenBack | None:
        """Return the last tokens to take back; None if nothing can go beyond them.

        More than one only where a character is split over tokens. Special tokens end a prompt
        for good.
        """
        spelled = b""
        for count, token in enumerate(reversed(tokens), start=1):
            word = self.spelled[token] if token < len(self.spelled) else b""
            if count > 4 or not self._spelling(word):
                return None
            spelled = word + spelled
            text = spelled.decode("utf-8", "replace")
            if "\ufffd" not in text:
                taken = TakenBack(text, tuple(tokens[-count:]))
                return taken if len(self.starting(spelled)) > 1 else None
        return None

    def _spelling(self, word: bytes) -> list[int]:
        at = bisect_left(self._words, word)
        found = []
        while at < len(self._words) and self._words[at] == word:
            found.append(self._sorted[at][1])
            at += 1
        return found


def _sorted(words: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    """Sort in parts, because one long sort would keep every other thread waiting for the GIL."""
    return list(merge(*(sorted(words[i : i + 2000]) for i in range(0, len(words), 2000))))
