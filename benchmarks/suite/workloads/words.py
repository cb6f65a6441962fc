"""Texts with an exact number of tokens, and outputs that are the same on every system.

Texts consist of words that are one token each, both at the start of a line and after a space. A
text of n words therefore has n tokens anywhere in a prompt.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from typing import Protocol

from sgl_mlx.errors import BenchmarkError

BIAS = 100.0
"""Logit bias that makes a model write one word, far above the differences of its logits."""

_WORD = re.compile(r" [a-z]{4}")
_WANTED = 400


class Vocabulary(Protocol):
    """The part of a tokenizer that `Words` uses."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...

    def decode(
        self, ids: Sequence[int], skip_special: bool = True, at_start: bool = True
    ) -> str: ...


class Words:
    """Words of four letters that are one token of a tokenizer each.

    Args:
        tokenizer: tokenizer of the model that all systems run.

    Raises:
        BenchmarkError: when the tokenizer has fewer than 50 such words.
    """

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        found: dict[str, tuple[int, int]] = {}
        for token in range(tokenizer.vocab_size):
            text = tokenizer.decode([token], at_start=False)
            if _WORD.fullmatch(text):
                alone = tokenizer.encode(text[1:], add_special=False)
                spaced = tokenizer.encode(text, add_special=False)
                if len(alone) == 1 and spaced == [token]:
                    found[text[1:]] = (alone[0], token)
            if len(found) == _WANTED:
                break
        if len(found) < 50:
            raise BenchmarkError(
                f"the tokenizer has {len(found)} words of four letters that are one token; the "
                "suite needs 50 to write its texts with"
            )
        self._words = list(found)
        self._tokens = found

    def text(self, tokens: int, seed: str) -> str:
        """Return a text of `tokens` words; equal seeds give equal texts."""
        draw = random.Random(seed)
        return " ".join(draw.choice(self._words) for _ in range(tokens))

    def steer(self, prompt: str, constrained: bool = False) -> dict[int, float]:
        """Return a logit bias, by token id, that makes the output one repeated word.

        The word depends only on the prompt. So all systems write the same text despite different
        rounding, and later calls have the same prompts on all systems. Different prompts mostly get
        different words.

        Args:
            constrained: True also biases the word without a space before it, for grammars.
        """
        word = self._words[zlib.crc32(prompt.encode()) % len(self._words)]
        alone, spaced = self._tokens[word]
        return dict.fromkeys((alone, spaced) if constrained else (spaced,), BIAS)

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))
