"""Replacements for recurrent modules of mlx-lm for which `state_cache.regroup` is not enough.

baichuan_m1 keeps the last token's keys and values as recurrent state beside a KV cache, in one
module. recurrent_gemma computes the first token of a sequence differently. mlx-lm recognises that
token by a missing state, but the runtime passes a state of zeros.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import baichuan_m1, recurrent_gemma

from sgl_mlx.models.state_cache import StateCache


class ConvolvedAttention(baichuan_m1.Attention):
    """baichuan_m1's attention, whose keys and values are mixed with the preceding token's."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if cache is not None and isinstance(cache[0], StateCache):
            cache = (_LastTokens(cache[0]), cache[1])
        return super().__call__(x, mask, cache)

    def _custom_convolution(self, u: mx.array, weights: mx.array, state: Any = None) -> Any:
        if isinstance(state, _LastToken):
            state = state.shifted(u)
        return super()._custom_convolution(u, weights, state)


class _LastTokens:
    """Recurrent state that holds each row's last token, for a module that computes all rows."""

    def __init__(self, state: StateCache) -> None:
        self._state = state

    def __getitem__(self, index: int) -> _LastToken:
        return _LastToken(self._state, index)

    def __setitem__(self, index: int, value: mx.array) -> None:
        self._state.write(index, self._state.groups.take_lasts(value))


class _LastToken:
    def __init__(self, state: StateCache, index: int) -> None:
        self._groups, self._before = state.groups, state.before[index]

    def shifted(self, new: mx.array) -> mx.array:
        """Return the token before each token of `new (tokens, ...)`, in the same row.

        Before a row's first token comes the row's state.
        """
        rows = len(self._groups.lengths)
        before = self._before
        if before is None:
            before = mx.zeros((rows, *new.shape[1:]), new.dtype)
        return mx.concatenate([before, new])[self._groups.places_before]


class FirstTokenLRU(recurrent_gemma.RGLRU):
    """recurrent_gemma's recurrence, which does not scale the first token of a sequence."""

    def __call__(self, x: mx.array, cache: mx.array | None = None) -> Any:
        if cache is None:
            return super().__call__(x, None)
        fresh = mx.all(cache == 0, axis=-1)  # no sequence with tokens has a state of zeros
        first, state = (
            mx.where(mx.expand_dims(fresh, tuple(range(1, a.ndim))), a, b)
            for a, b in zip(
                super().__call__(x[:, :1], None), super().__call__(x[:, :1], cache), strict=True
            )
        )
        if x.shape[1] == 1:
            return first, state
        rest, state = super().__call__(x[:, 1:], state)
        return mx.concatenate([first, rest], axis=1), state


REPLACEMENTS: dict[Any, Any] = {
    baichuan_m1.Attention: ConvolvedAttention,
    recurrent_gemma.RGLRU: FirstTokenLRU,
}
"""Classes of mlx-lm, and the subclass that takes their place."""
