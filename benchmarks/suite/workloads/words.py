"""Texts with an exact number of tokens, and outputs that are the same on every system.

Everything is made of words that the tokenizer spells as one token each, at the start of a line as
well as after a space. So a text of n words has n tokens wherever it stands.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from typing import Protocol

from sgl_mlx.errors import BenchmarkError

BIAS = 100.0
"""Added to the logits of one word: far above what a model's logits differ by."""

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
    """Words of one tokenizer.

    Args:
        tokenizer: of the model that all systems run.

    Raises:
        BenchmarkError: it has too few words of four letters.
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
        """Return a logit bias that makes the output one repeated word, chosen by the prompt.

        With it, all systems write the same text, whatever their arithmetic rounds to, so that the
        calls that follow have the same prompts; and different prompts have different outputs.

        Args:
            constrained: a grammar may want the word without a space before it, too.
        """
        word = self._words[zlib.crc32(prompt.encode()) % len(self._words)]
        alone, spaced = self._tokens[word]
        return dict.fromkeys((alone, spaced) if constrained else (spaced,), BIAS)

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))
