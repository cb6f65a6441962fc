"""Token healing: removes the last token of a prompt and lets the output begin with its text.

A prompt that ends in "http:" ends in the token ":". In training the model hardly ever saw "//"
after this token, because "://" is a token of its own. So the last token is removed from the prompt,
and the first token of the output must begin with its text. If there is no such token, tokens that
spell the beginning of the text are allowed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge

from sgl_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class TakenBack:
    """The end of a prompt that token healing removes; the output begins with the same text.

    Where a caller is told the prompt's tokens or their number, the removed end is included.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()


NOTHING_TAKEN = TakenBack()


class Healing:
    """Constraint that the output begins with the bytes `prefix`; same interface as `Constraint`."""

    def __init__(self, spellings: Spellings, prefix: bytes) -> None:
        self._spellings = spellings
        self._missing = prefix

    def copy(self) -> Healing:
        """Return a constraint in the same state, which can be advanced on its own."""
        return Healing(self._spellings, self._missing)

    @property
    def complete(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        return None

    @property
    def done(self) -> bool:
        """True when the output contains the whole prefix, so that any token may follow."""
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
    """The bytes of every ordinary token of a vocabulary, sorted for look-up by prefix.

    Args:
        vocabulary: the model's number of logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self.mask_bytes = (vocabulary + 31) // 32 * 4
        size = min(vocabulary, tokenizer.vocab_size)
        self.spelled = [tokenizer.token_bytes(token) for token in range(size)]
        ordinary = (t for t in range(size) if self.spelled[t] and not tokenizer.is_special(t))
        self._sorted = _sorted([(self.spelled[t], t) for t in ordinary])
        self._words = [word for word, _ in self._sorted]

    def starting(self, prefix: bytes) -> list[int]:
        """List the tokens whose bytes begin with `prefix`.

        If there are none, list the tokens that spell a beginning of `prefix`. Such short tokens are
        left out if there are longer ones, because they lead the model astray: after the token " "
        the model seldom writes what it would write after " the".
        """
        first = bisect_left(self._words, prefix)
        last = bisect_left(self._words, prefix + b"\xff" * 64)
        beyond = [token for _, token in self._sorted[first:last]]
        if beyond:
            return beyond
        return [t for end in range(1, len(prefix)) for t in self._spelling(prefix[:end])]

    def heals(self, tokens: Sequence[int]) -> TakenBack | None:
        """Choose the end of a prompt to remove: its last token, or several that share a character.

        Returns:
            The end to remove. None if fewer than two tokens could begin the output after the
            removal, if the prompt is empty or ends with a special token, or if the prompt's last
            four tokens do not spell whole characters.
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
    """Sort in parts, so that other threads can take the GIL in between."""
    return list(merge(*(sorted(words[i : i + 2000]) for i in range(0, len(words), 2000))))
