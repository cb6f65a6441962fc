"""Hidden states of a model's last layer, from which it would compute logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.trunk import trunk_of

CHUNK = 512
"""Number of tokens computed in one call; other work of the model may run between calls."""

Run = Callable[[Callable[[Any], Any]], Any]
"""Function that calls a function with the model, on the thread that runs the model."""


def last_hidden_state(run: Run, tokens: Sequence[int]) -> list[float]:
    """Return the last layer's hidden state after the last of `tokens`, one number per channel.

    The final norm is applied. The tokens are computed in chunks, with a KV cache of their own.

    Args:
        tokens: token ids, at least one.

    Raises:
        UnsupportedModelError: the architecture does not separate hidden states from logits.
    """
    *_, state = chunk_states(run, tokens, _last)
    return state


def chunk_states(
    run: Run, tokens: Sequence[int], reduce: Callable[[mx.array], mx.array]
) -> Iterator[list[float]]:
    """Compute the tokens in chunks; yield one vector for each chunk, one number per channel.

    Args:
        reduce: makes a vector `(width,)` of a chunk's hidden states `(tokens, width)` in float32.

    Raises:
        UnsupportedModelError: as `last_hidden_state`.
    """
    cache = run(make_prompt_cache)
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        yield run(partial(_compute, tokens=chunk, cache=cache, reduce=reduce))


def _last(states: mx.array) -> mx.array:
    return states[-1]


def _compute(
    model: nn.Module, tokens: Sequence[int], cache: Any, reduce: Callable[[mx.array], mx.array]
) -> list[float]:
    trunk = trunk_of(model)
    if trunk is model:
        raise UnsupportedModelError("its architecture does not give hidden states, only logits")
    states = trunk(mx.array([tokens], mx.int32), cache=cache)[0].astype(mx.float32)
    return cast(list[float], reduce(states).tolist())


REDUCE: dict[str, Callable[[mx.array], mx.array]] = {
    "last": _last,
    "mean": partial(mx.sum, axis=0),
}
"""Argument `reduce` of `chunk_states` by pooling mode: the last state of a chunk, or the sum."""
