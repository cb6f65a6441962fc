"""Tokens that end an answer although no list of end tokens names them."""

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
"""The ends of a turn or text of well-known models."""


def ends_of_turn(
    backend: tokenizers.Tokenizer, known: Container[int], template: str | None
) -> set[int]:
    """Find the ends of a turn that the chat template writes and no list of end tokens names.

    Conversions forget them: the model then writes the mark and goes on with the next turn.
    """
    written = [mark for mark in END_OF_TURN if template is not None and mark in template]
    found = (backend.token_to_id(mark) for mark in written)
    return {token for token in found if token is not None and token not in known}
