"""Softmax attention in plain MLX, computed over parts of the keys and merged.

A token's softmax over all its keys is merged from *partials*, each over some of the keys (flash
attention's merge, arXiv 2205.14135 §3.1). So a prefix that several sequences share takes one
matrix product for all of them. A causal chunk is computed in tiles; fully masked tiles are skipped.

Layout throughout: queries `(kv_heads, tokens, group, dim)`, keys and values `(kv_heads, length,
dim)`; `group` is the number of query heads per KV head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from sgl_mlx.models import cpu_math

TILE = 128
"""Number of query tokens in a tile."""

MASKED = -1e30
"""Score of a masked key; finite, so that a fully masked partial merges without NaN."""


class Partial(NamedTuple):
    """Softmax attention over some of the keys, not yet divided by the sum of weights.

    Attributes:
        out: sum of values weighted by `exp(score - peak)`, `(kv_heads, tokens, group, dim)`.
        peak: largest score of each query, `(kv_heads, tokens, group, 1)`.
        mass: sum of `exp(score - peak)`, of the shape of `peak`.
    """

    out: mx.array
    peak: mx.array
    mass: mx.array

    def normalised(self, sinks: mx.array | None = None) -> mx.array:
        """Divide by the mass; returns `(tokens, heads, dim)`.

        Args:
            sinks: `(heads,)`, one extra logit per head: it adds to the mass but has no value.
        """
        mass = self.mass
        if sinks is not None:
            kv_heads, _, group, _ = self.out.shape
            logits = sinks.astype(mass.dtype).reshape(kv_heads, 1, group, 1)
            mass = mass + mx.exp(logits - self.peak)
        out = (self.out / mass).transpose(1, 0, 2, 3)
        return out.reshape(out.shape[0], -1, out.shape[3])


def merge(a: Partial, b: Partial) -> Partial:
    """Merge two partials of the same queries over different keys into one over all these keys."""
    peak = mx.maximum(a.peak, b.peak)
    weight_a, weight_b = mx.exp(a.peak - peak), mx.exp(b.peak - peak)
    return Partial(a.out * weight_a + b.out * weight_b, peak, a.mass * weight_a + b.mass * weight_b)


def spread(parts: Sequence[Partial], firsts: Sequence[int], tokens: int) -> Partial:
    """Expand `parts` to one Partial over `tokens` tokens; part i begins at token `firsts[i]`.

    The parts are in ascending order and do not overlap. All other tokens get an empty softmax.
    """
    pieces, end = [], 0
    for part, first in zip(parts, firsts, strict=True):
        if first > end:
            pieces.append(_nothing(part, first - end))
        pieces.append(part)
        end = first + part.peak.shape[1]
    if end < tokens:
        pieces.append(_nothing(parts[-1], tokens - end))
    return concatenate(pieces)


def _nothing(like: Partial, tokens: int) -> Partial:
    out, peak, mass = ((x.shape[0], tokens, *x.shape[2:]) for x in like)
    dtypes = [x.dtype for x in like]
    return Partial(
        mx.zeros(out, dtypes[0]), mx.full(peak, MASKED, dtypes[1]), mx.zeros(mass, dtypes[2])
    )


def concatenate(parts: list[Partial]) -> Partial:
    """Join the partials of consecutive token ranges into one."""
    if len(parts) == 1:
        return parts[0]
    return Partial(*(mx.concatenate(list(x), axis=1) for x in zip(*parts, strict=True)))


def group_heads(queries: mx.array, kv_heads: int, scale: float) -> mx.array:
    """Reshape queries `(tokens, heads, dim)` to `(kv_heads, tokens, group, dim)`, times `scale`."""
    tokens, heads, dim = queries.shape
    grouped = queries.reshape(tokens, kv_heads, heads // kv_heads, dim)
    return (grouped * scale).transpose(1, 0, 2, 3)


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    bias: mx.array | None = None,
    softcap: float | None = None,
) -> Partial:
    """Attend every query to every key, in one matrix product.

    Args:
        bias: added to the scores; `(tokens, length)` or `(kv_heads, tokens, length)`. If its
            `tokens` is 1, it applies to every token.
        softcap: see `AttentionOptions`.
    """
    kv_heads, tokens, group, dim = queries.shape
    scores = queries.reshape(kv_heads, tokens * group, dim) @ keys.swapaxes(-1, -2)
    scores = soft_capped(scores, softcap)
    if bias is not None:
        split = scores.reshape(kv_heads, tokens, group, -1) + bias[..., :, None, :]
        scores = split.reshape(scores.shape)
    peak = peaks(scores)
    weights = exp_minus(scores, peak)
    mass = sums(weights)
    shape = (kv_heads, tokens, group, -1)
    return Partial((weights @ values).reshape(shape), peak.reshape(shape), mass.reshape(shape))


def attend_tiled(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    bias: mx.array | None = None,
    softcap: float | None = None,
) -> Partial:
    """Compute `attend` for `TILE` tokens at a time, to keep the score matrices small."""
    tokens = queries.shape[1]
    ranges = [slice(start, start + TILE) for start in range(0, tokens, TILE)]
    return concatenate(
        [
            attend(queries[:, r], keys, values, None if bias is None else bias[r], softcap)
            for r in ranges
        ]
    )


def attend_causal(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    window: int | None,
    bias: Callable[[int, int, int, int | None], mx.array],
    softcap: float | None = None,
) -> Partial:
    """Attend token i to keys 0 … i, or to the last `window` of these keys, in tiles.

    Args:
        bias: `causal_bias`, or a function that caches its results.
    """
    tokens = queries.shape[1]
    parts = []
    for start in range(0, tokens, TILE):
        end = min(start + TILE, tokens)
        first = 0 if window is None else max(0, start - window + 1)
        mask = bias(end - start, start - first, end - first, window)
        seen = slice(first, end)
        parts.append(attend(queries[:, start:end], keys[:, seen], values[:, seen], mask, softcap))
    return concatenate(parts)


def soft_capped(scores: mx.array, softcap: float | None) -> mx.array:
    """Return `softcap * tanh(scores / softcap)`; the scores unchanged if `softcap` is None."""
    return scores if softcap is None else softcap * mx.tanh(scores / softcap)


def causal_bias(tokens: int, offset: int, length: int, window: int | None = None) -> mx.array:
    """Compute the causal mask `(tokens, length)`: token i sees keys up to `offset + i`.

    Seen keys are 0, others `MASKED`. With a window, token i sees the last `window` of its keys.
    """
    return position_bias(mx.arange(offset, offset + tokens), mx.arange(length), window)


def position_bias(queries: mx.array, keys: mx.array, window: int | None) -> mx.array:
    """Compute a mask from positions: 0 where query i sees key j, else `MASKED`.

    A query sees its own and all earlier positions; with a window, only the last `window` of these.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    return mx.where(seen, 0.0, MASKED)


def peaks(scores: mx.array) -> mx.array:
    """Return each query's largest score `(…, 1)`."""
    return cpu_math.peaks(scores) if cpu_math.on_cpu() else mx.max(scores, axis=-1, keepdims=True)


def exp_minus(x: mx.array, peak: mx.array) -> mx.array:
    if x.dtype == mx.float32 and cpu_math.on_cpu():
        return cpu_math.exp_minus(x, peak)
    return mx.exp(x - peak)


def sums(weights: mx.array) -> mx.array:
    """Return the sum of each query's weights `(…, 1)`."""
    if weights.dtype == mx.float32 and cpu_math.on_cpu():
        return cpu_math.sums(weights)
    return mx.sum(weights, axis=-1, keepdims=True)
