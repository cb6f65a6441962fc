"""The tokenizer's vocabulary as the grammar engine sees it: the bytes of every token.

llguidance could read `tokenizer.json` by itself, but would then decide anew what tokens spell. It
is given the bytes of `Tokenizer.token_bytes` instead, so that text and grammar cannot disagree.
"""

from __future__ import annotations

import re

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer import Tokenizer

_MARK = b"\xff"
"""No text holds this byte; llguidance takes tokens that begin with it for special ones."""

_CHUNK = 64
"""How many tokens are tried in one piece of text by the check of the vocabulary."""


class Vocabulary:
    """The tokens' bytes in the shape that `LLTokenizer` takes (its `TokenizerWrapper` protocol).

    Special tokens and end tokens have a marked name instead of a spelling: no text of a
    constraint becomes one of them, so `a</s>b` is written in ordinary tokens. A Lark grammar names
    them as `<name>`.

    Args:
        size: the model's number of logits; ids past the tokenizer's spell nothing.

    Raises:
        TokenizerError: when most tokens do not spell the text that is tokenized into them.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.ends = sorted(t for t in tokenizer.eos_token_ids if t < size) or [size]
        count = min(size, tokenizer.vocab_size)
        marks = {t for t in range(count) if tokenizer.is_special(t)} | set(self.ends)
        self._text = {
            token: spelled
            for token in range(count)
            if token not in marks and _MARK not in (spelled := tokenizer.token_bytes(token))
        }
        self.tokens = [self._text.get(t, b"") for t in range(max(size, self.ends[-1] + 1))]
        for token in marks:
            self.tokens[token] = _MARK + (tokenizer.token_bytes(token) or b"<end>")
        self._longest = max(map(len, self._text.values()), default=0)
        self._ids = {spelled: token for token, spelled in reversed(self._text.items())}
        self.eos_token_id = self.ends[0]
        self.special_token_ids = sorted(marks)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokenize a text that a grammar forces; the tokens spell exactly this text."""
        raw = text.encode() if isinstance(text, str) else text
        try:
            ids = self._tokenizer.encode_plain(raw.decode())
        except UnicodeDecodeError:
            return self._longest_first(raw)
        return ids if self.spell(ids) == raw else self._longest_first(raw)

    def spell(self, tokens: list[int]) -> bytes:
        """Return the text of tokens; marks spell nothing here."""
        return b"".join(self._text.get(token, b"") for token in tokens)

    def check(self) -> None:
        """Compare what tokens spell with how their text is tokenized, over the whole vocabulary."""
        texts = [s.decode() for s in self._text.values() if s and _is_text(s)]
        chunks = [texts[i : i + _CHUNK] for i in range(0, len(texts), _CHUNK)]
        doubtful = [chunk for chunk in chunks if not self._comes_back("".join(chunk))]
        wrong = [text for chunk in doubtful for text in chunk if not self._comes_back(text)]
        if 2 * len(wrong) > len(texts):
            raise TokenizerError(
                f"the tokenizer writes {len(wrong):,} of {len(texts):,} tokens otherwise than it "
                f"reads them, {wrong[0]!r} among them: its decoder does not fit its vocabulary"
            )

    def _comes_back(self, text: str) -> bool:
        return self.spell(self._tokenizer.encode_plain(text)) == text.encode()

    def _longest_first(self, raw: bytes) -> list[int]:
        """Take the longest tokens from left to right; end before a byte that begins no token."""
        ids: list[int] = []
        at = 0
        while at < len(raw):
            sizes = range(min(self._longest, len(raw) - at), 0, -1)
            size = next((n for n in sizes if raw[at : at + n] in self._ids), None)
            if size is None:
                break
            ids.append(self._ids[raw[at : at + size]])
            at += size
        return ids


class GrammarVocabulary:
    """llguidance over exactly the tokenizer's bytes.

    Attributes:
        engine: what llguidance's matchers are made with.
        spelled: the bytes of each token; marked names for special ones.
        ids: the tokens that spell given bytes.
        quotes, commas, escapes: the tokens with a `"`, a `,` or a backslash in them.
        quote_then_comma: those with a comma behind a quotation mark.
        digits: the tokens that begin with digits, and with how many.
        longest_digits: the most of these.

    Raises:
        TokenizerError: as `Vocabulary`, or when llguidance took a token for other bytes.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        vocabulary = Vocabulary(tokenizer, size)
        vocabulary.check()
        self.spelled = vocabulary.tokens
        self.quotes = self._matching(rb'"')
        self.commas = self._matching(rb",")
        self.escapes = self._matching(rb"\\")
        self.quote_then_comma = self._matching(rb'"[^,]*,')
        starting = self._matching(rb"\A[0-9]")
        counts = [len(s) - len(s.lstrip(b"0123456789")) for s in self._spelled_of(starting)]
        self.digits = starting, np.array(counts, np.intp)
        self.longest_digits = max(counts, default=0)
        self.ids: dict[bytes, list[int]] = {}
        for token, spelled in enumerate(self.spelled):
            self.ids.setdefault(spelled, []).append(token)
        self.engine = LLTokenizer(vocabulary, eos_token=vocabulary.ends)  # type: ignore[arg-type]
        for token, spelled in enumerate(self.spelled):
            if spelled and spelled[:1] != _MARK and self.engine.decode_bytes([token]) != spelled:
                raise TokenizerError(
                    f"token {token} spells {spelled!r}, but "
                    f"{self.engine.decode_bytes([token])!r} to the grammar engine"
                )

    def _matching(self, pattern: bytes) -> NDArray[np.intp]:
        find = re.compile(pattern).search
        found = [t for t, spelled in enumerate(self.spelled) if find(spelled)]
        return np.array(found, np.intp)

    def _spelled_of(self, tokens: NDArray[np.intp]) -> list[bytes]:
        return [self.spelled[t] for t in tokens.tolist()]


def _is_text(spelled: bytes) -> bool:
    try:
        spelled.decode()
    except UnicodeDecodeError:
        return False
    return True
