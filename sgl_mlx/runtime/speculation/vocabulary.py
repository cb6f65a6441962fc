"""Comparison of two models' vocabularies: drafted token ids must mean the same in both."""

from __future__ import annotations

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.tokenizer import Tokenizer


def check_same(tokenizer: Tokenizer, draft: Tokenizer, names: tuple[str, str]) -> None:
    """Check that each token id stands for the same bytes in both tokenizers.

    Args:
        names: the names of the large and of the draft model, for the message.

    Raises:
        InvalidParamsError: the vocabularies differ; the message has the first difference.
    """
    large, small = names
    for token in range(min(tokenizer.vocab_size, draft.vocab_size)):
        here, there = tokenizer.token_bytes(token), draft.token_bytes(token)
        if here != there:
            raise InvalidParamsError(
                f"the draft model {small} has another vocabulary than {large}: token {token} is "
                f"{there!r} there and {here!r} here; choose a smaller model of the same family"
            )
    if tokenizer.vocab_size != draft.vocab_size:
        raise InvalidParamsError(
            f"the draft model {small} has {draft.vocab_size} tokens and {large} has "
            f"{tokenizer.vocab_size}; choose a smaller model of the same family"
        )
