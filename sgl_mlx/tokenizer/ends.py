"""End-of-turn tokens that a model's files do not list among its end tokens."""

from __future__ import annotations

from collections.abc import Container

import tokenizers

END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
"""End-of-turn and end-of-text tokens of well-known models."""


def ends_of_turn(
    backend: tokenizers.Tokenizer, known: Container[int], template: str | None
) -> set[int]:
    """Find the ids of the tokens in `END_OF_TURN` that the chat template contains.

    Ids in `known`, the end tokens that the model's files list, are left out. Some converted models
    do not list all their end tokens. Without the missing ones, an answer would not stop at the end
    of its turn.
    """
    written = [mark for mark in END_OF_TURN if template is not None and mark in template]
    found = (backend.token_to_id(mark) for mark in written)
    return {token for token in found if token is not None and token not in known}
