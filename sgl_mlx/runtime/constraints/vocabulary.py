"""The tokenizer's vocabulary for llguidance: the bytes of every token.

llguidance could read `tokenizer.json` itself, but might find other bytes for a token. It gets the
bytes of `Tokenizer.token_bytes` instead, so that grammars agree with decoded text.
"""

from __future__ import annotations

import re

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer import Tokenizer

_MARK = b"\xff"
"""First byte of a special token's name for llguidance; UTF-8 text never contains this byte."""

_CHUNK = 64
"""Number of tokens whose texts `Vocabulary.check` tokenizes together."""


class Vocabulary:
    """The tokens' bytes as the `TokenizerWrapper` protocol of `LLTokenizer` requires.

    The bytes of a special or end token are `_MARK` and the token's name. So the text of a
    constraint is never written with special tokens: `a</s>b` takes ordinary tokens. A Lark grammar
    refers to a special token as `<name>`.

    Args:
        size: the model's number of logits; ids beyond the tokenizer's vocabulary have no bytes.
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
        """Tokenize a text that a grammar forces, without special tokens.

        The tokens spell exactly this text, or its beginning if the vocabulary lacks bytes for it.
        """
        raw = text.encode() if isinstance(text, str) else text
        try:
            ids = self._tokenizer.encode_plain(raw.decode())
        except UnicodeDecodeError:
            return self._longest_first(raw)
        return ids if self.spell(ids) == raw else self._longest_first(raw)

    def spell(self, tokens: list[int]) -> bytes:
        """Return the bytes of tokens; special and end tokens have none."""
        return b"".join(self._text.get(token, b"") for token in tokens)

    def check(self) -> None:
        """Check that the text of each token is tokenized into tokens that spell the same text.

        Raises:
            TokenizerError: more than half of the tokens give another text.
        """
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
        """Tokenize bytes from left to right, the longest matching token each time.

        Stops where no token matches.
        """
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
    """Vocabulary of llguidance, with tables of tokens for `JsonText`.

    Attributes:
        engine: the `LLTokenizer` that matchers are made with.
        spelled: the bytes of each token; for special and end tokens, `_MARK` and the name.
        ids: maps bytes to the tokens that spell exactly these bytes.
        quotes, commas, escapes: the tokens that contain a `"`, a `,` or a backslash.
        quote_then_comma: the tokens that contain a `"` and later a `,`.
        digits: the tokens that begin with a digit, and with how many digits each begins.
        longest_digits: the most digits with which a token begins; 0 if none begins with a digit.

    Raises:
        TokenizerError: `Vocabulary.check` failed, or llguidance has other bytes for a token.
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
