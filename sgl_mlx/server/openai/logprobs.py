"""Logprobs in the JSON shapes of chat completions and of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgl_mlx.core import FinishReason, TokenLogprob
from sgl_mlx.server.engine import ServedTokenizer

Row = Sequence[TokenLogprob]

NEVER = -9999.0
"""Value for a token without a logprob, such as a forced token; OpenAI uses the same value."""


def chat_logprobs(
    tokens: Row, tops: Sequence[Row], tokenizer: ServedTokenizer
) -> list[dict[str, Any]]:
    """Return the entries of `logprobs.content`, one for each token.

    Args:
        tops: the most likely tokens at each position; empty if none were requested.
    """
    rows = tops or [()] * len(tokens)
    return [
        {
            **_entry(token, tokenizer),
            "top_logprobs": [_entry(other, tokenizer) for other in top],
        }
        for token, top in zip(tokens, rows, strict=False)
    ]


def without_end(
    tokens: Row, tops: Sequence[Row], reason: FinishReason | None
) -> tuple[Row, Sequence[Row]]:
    """Drop the last token's entries if it is the stop token that ended the output."""
    if reason is None or not isinstance(reason.matched, int):
        return tokens, tops
    kept = len(tokens) - 1 if tokens and tokens[-1].token_id == reason.matched else len(tokens)
    return tokens[:kept], tops[:kept]


class CompletionLogprobs:
    """A builder of `logprobs` of completions, with each token's offset in the text.

    Args:
        alternatives: number of alternative tokens to show for each token.
    """

    def __init__(self, tokenizer: ServedTokenizer, alternatives: int) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._detokenizer = tokenizer.detokenizer(False, at_start=True)
        self._offset = 0

    def add(self, tokens: Row, tops: Sequence[Row]) -> dict[str, Any]:
        """Return the `logprobs` object of the next tokens; their text offsets continue.

        Args:
            tops: the most likely tokens at each position; empty if none were requested.
        """
        rows = tops or [()] * len(tokens)
        return {
            "tokens": [token_name(t.token_id, self._tokenizer) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [
                self._top(token, top) for token, top in zip(tokens, rows, strict=False)
            ],
            "text_offset": [self._next_offset(t.token_id) for t in tokens],
        }

    def _top(self, token: TokenLogprob, top: Row) -> dict[str, float] | None:
        """Return the logprobs of the alternatives and of the token itself, keyed by their text.

        The result is None if no alternatives are requested or the token has no logprob.
        """
        if token.logprob is None or not self._alternatives:
            return None
        shown: dict[str, float] = {}
        for other in (*top, token):
            if other.logprob is not None:
                shown.setdefault(token_name(other.token_id, self._tokenizer), other.logprob)
        return shown

    def _next_offset(self, token_id: int) -> int:
        offset = self._offset
        self._offset += len(self._detokenizer.add(token_id))
        return offset


def token_name(token_id: int, tokenizer: ServedTokenizer) -> str:
    """Return a token's text, or `bytes:\\xe2\\x82` if its bytes are not valid UTF-8."""
    spelled = tokenizer.token_bytes(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _entry(token: TokenLogprob, tokenizer: ServedTokenizer) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token.token_id),
        "logprob": NEVER if token.logprob is None else token.logprob,
        "bytes": list(tokenizer.token_bytes(token.token_id)),
    }
