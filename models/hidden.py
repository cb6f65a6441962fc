"""Hidden states of a model's last layer, from which it would compute logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.trunk import trunk_of

CHUNK = 512
"""Number of tokens computed in one call; other work of the model may run between calls."""


def last_hidden_state(
    run: Callable[[Callable[[Any], Any]], Any], tokens: Sequence[int]
) -> list[float]:
    """Return the last layer's hidden state after the last of `tokens`, one number per channel.

    The final norm is applied. The tokens are computed in chunks, with a KV cache of their own.

    Args:
        run: calls a function with the model on the thread that runs the model.
        tokens: token ids, at least one.

    Raises:
        UnsupportedModelError: the architecture does not separate hidden states from logits.
    """
    cache, state = run(make_prompt_cache), list[float]()
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        state = run(partial(_compute, tokens=chunk, cache=cache))
    return state


def _compute(model: nn.Module, tokens: Sequence[int], cache: Any) -> list[float]:
    trunk = trunk_of(model)
    if trunk is model:
        raise UnsupportedModelError("its architecture does not give hidden states, only logits")
    hidden = trunk(mx.array([tokens], mx.int32), cache=cache)[0, -1].astype(mx.float32)
    found: list[float] = hidden.tolist()
    return found
