"""Vision transformer of Qwen's models over a picture's own grid of patches.

Patches are embedded by a linear layer. Attention turns queries and keys by row and column. A merger
joins squares of patches to tokens. Patches are in the order of the tokens that they become, row by
row within each token. Parameters have the names of Qwen3-VL's checkpoints.

Qwen3-VL (arXiv 2511.21631) and Qwen3.5 add a learned square grid of position embeddings, resampled
to the picture's grid. Qwen2.5-VL (arXiv 2502.13923) attends within windows in most layers.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.models.vision.pixels import Size
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig
from sgl_mlx.models.vision.qwen.windows import Groups, Windows
from sgl_mlx.models.vision.tower import activation

_EPS = 1e-6
_THETA = 10_000.0
_SCORE_BYTES = 256 << 20
"""Most bytes that one block of attention scores takes."""


class QwenTower(nn.Module):
    """Vision part of a Qwen model, from pictures of equal size to features."""

    def __init__(self, config: QwenTowerConfig) -> None:
        super().__init__()
        self._config = config
        self.patch_embed = PatchEmbedding(config)
        if config.side:
            self.pos_embed = nn.Embedding(config.side**2, config.width)
        self.blocks = [Block(config) for _ in range(config.layers)]
        self.merger = Merger(config, before=True)
        if config.deep:
            self.deepstack_merger_list = [Merger(config, before=False) for _ in config.deep]

    def __call__(self, pixels: mx.array) -> mx.array:
        """Encode pictures `(pictures, frames, height, width, 3)`.

        They have one frame, or as many as a patch has (`QwenTowerConfig.frames`).

        Returns:
            Features `(pictures, tokens, features)`: the language model's width once for the
            embedding of each token, and once more for each layer of `deep`.
        """
        config = self._config
        grid = pixels.shape[2] // config.patch, pixels.shape[3] // config.patch
        hidden = self.patch_embed(pixels)
        if config.side:
            hidden = hidden + self._positions(grid).astype(hidden.dtype)
        windows = Windows(grid, config)
        hidden = windows.sorted(hidden)
        turns = windows.sorted(turned_by(grid, config))
        deep: list[mx.array] = []
        for index, block in enumerate(self.blocks):
            inside = not config.window or index in config.full
            hidden = block(hidden, turns, windows.whole if inside else windows.groups)
            if index in config.deep:
                deep.append(self.deepstack_merger_list[config.deep.index(index)](hidden))
        features: mx.array = mx.concatenate([self.merger(hidden), *deep], axis=-1)
        return windows.by_row(features)

    def _positions(self, grid: Size) -> mx.array:
        """Resample the learned grid of position embeddings bilinearly to the picture's grid.

        The corners of the two grids coincide. The arithmetic is float32. Returns `(patches,
        width)`.
        """
        side = self._config.side
        learned = self.pos_embed(mx.arange(side**2)).astype(mx.float32)
        image = learned.reshape(side, side, -1)
        for axis, length in enumerate(grid):
            image = _resampled(image, axis, length)
        return _by_token(image, self._config.merge)


def _resampled(image: mx.array, axis: int, length: int) -> mx.array:
    """Resample one axis linearly to `length`; the first and the last point stay in place."""
    last = image.shape[axis] - 1
    at = mx.arange(length).astype(mx.float32) * last / max(length - 1, 1)
    low = mx.floor(at).astype(mx.int32)
    weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    high = mx.minimum(low + 1, last)
    return mx.take(image, low, axis) * (1 - weight) + mx.take(image, high, axis) * weight


def _by_token(image: mx.array, merge: int) -> mx.array:
    """Flatten `(rows, columns, …)` in the order of tokens; `(rows * columns, …)`."""
    rows, columns, *rest = image.shape
    squares = image.reshape(rows // merge, merge, columns // merge, merge, *rest).swapaxes(1, 2)
    return squares.reshape(rows * columns, *rest)


def turned_by(grid: Size, config: QwenTowerConfig) -> mx.array:
    """Return the angles `(1, patches, width of a head / 2)` of the rotary positions.

    The first half of the frequencies turns by a patch's row, the second half by its column.
    """
    count = config.width // config.heads // 4
    frequencies = _THETA ** -(mx.arange(count).astype(mx.float32) / count)
    rows = mx.broadcast_to(mx.arange(grid[0])[:, None], grid)
    columns = mx.broadcast_to(mx.arange(grid[1]), grid)
    places = _by_token(mx.stack([rows, columns], axis=-1), config.merge)
    return (places[..., None] * frequencies).reshape(1, len(places), -1)


class PatchEmbedding(nn.Module):
    """Embedding of patches by a linear layer, which published checkpoints store as convolution."""

    def __init__(self, config: QwenTowerConfig) -> None:
        super().__init__()
        self._config = config
        inputs = config.frames * config.patch**2 * config.channels
        self.proj = nn.Linear(inputs, config.width, bias=config.patch_bias)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Embed pictures `(pictures, frames, height, width, channels)`.

        A single frame fills all frames of a patch. Returns `(pictures, patches, width)`.
        """
        config = self._config
        patch, (count, frames) = config.patch, pixels.shape[:2]
        rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
        cut = pixels.reshape(count, frames, rows, patch, columns, patch, -1)
        squares = _by_token(cut.transpose(2, 4, 0, 1, 3, 5, 6), config.merge)
        ordered = squares.swapaxes(0, 1).reshape(count, rows * columns, -1)
        embedded: mx.array = self.proj(
            mx.tile(ordered, (1, 1, config.frames // frames)).astype(self.proj.weight.dtype)
        )
        return embedded


class Block(nn.Module):
    """Transformer layer: attention and feed-forward, each after a norm of its own."""

    def __init__(self, config: QwenTowerConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config, config.width)
        self.norm2 = _norm(config, config.width)
        self.attn = GridAttention(config)
        shape = config.width, config.hidden, config.width, config.activation
        self.mlp = Gated(*shape) if config.gated else TwoLayers(*shape)

    def __call__(self, hidden: mx.array, turns: mx.array, groups: Groups) -> mx.array:
        hidden = hidden + self.attn(self.norm1(hidden), turns, groups)
        mixed: mx.array = hidden + self.mlp(self.norm2(hidden))
        return mixed


class GridAttention(nn.Module):
    """Attention among all patches of a picture; rotary positions tell it their rows and columns."""

    def __init__(self, config: QwenTowerConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self._scale = (config.width // config.heads) ** -0.5
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def __call__(self, hidden: mx.array, turns: mx.array, groups: Groups) -> mx.array:
        """Attend within windows; `turns` are the angles of `turned_by`."""
        pictures, patches, width = hidden.shape
        three = self.qkv(hidden).reshape(pictures, patches, 3, self._heads, -1)
        angles = turns[:, :, None]
        queries, keys = (_turned(three[:, :, i], angles) for i in (0, 1))
        mixed, first = [], 0
        for count, size in groups:
            members = slice(first, first + count * size)
            parts = (
                x[:, members].reshape(pictures * count, size, self._heads, -1).swapaxes(1, 2)
                for x in (queries, keys, three[:, :, 2])
            )
            found = self._attend(*parts).swapaxes(1, 2)
            mixed.append(found.reshape(pictures, count * size, width))
            first += count * size
        projected: mx.array = self.proj(mx.concatenate(mixed, axis=1))
        return projected

    def _attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Attend with `(windows, heads, patches, dim)`, some queries at a time."""
        windows, _, patches, _ = queries.shape
        block = max(1, _SCORE_BYTES // (4 * windows * self._heads * patches))
        mixed = [
            mx.fast.scaled_dot_product_attention(
                queries[:, :, first : first + block], keys, values, scale=self._scale
            )
            for first in range(0, patches, block)
        ]
        return mx.concatenate(mixed, axis=2)


def _turned(x: mx.array, angles: mx.array) -> mx.array:
    """Turn `(pictures, patches, heads, dim)` in float32: column i with column i + dim / 2."""
    cosines, sines = mx.cos(angles), mx.sin(angles)
    left, right = mx.split(x.astype(mx.float32), 2, axis=-1)
    pair = [left * cosines - right * sines, right * cosines + left * sines]
    return mx.concatenate(pair, axis=-1).astype(x.dtype)


def _norm(config: QwenTowerConfig, width: int) -> nn.Module:
    return nn.RMSNorm(width, _EPS) if config.gated else nn.LayerNorm(width, _EPS)


class TwoLayers(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, inputs: int, hidden: int, outputs: int, function: str) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(inputs, hidden)
        self.linear_fc2 = nn.Linear(hidden, outputs)
        self._activate = activation(function)

    def __call__(self, x: mx.array) -> mx.array:
        projected: mx.array = self.linear_fc2(self._activate(self.linear_fc1(x)))
        return projected


class Gated(nn.Module):
    """Two linear layers, the first of them multiplied by a gate."""

    def __init__(self, inputs: int, hidden: int, outputs: int, function: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(inputs, hidden)
        self.up_proj = nn.Linear(inputs, hidden)
        self.down_proj = nn.Linear(hidden, outputs)
        self._activate = activation(function)

    def __call__(self, x: mx.array) -> mx.array:
        gated = self._activate(self.gate_proj(x)) * self.up_proj(x)
        projected: mx.array = self.down_proj(gated)
        return projected


class Merger(TwoLayers):
    """Projection of each square of patches to the language model's width.

    Args:
        before: True normalises each patch before patches are joined, False the joined square.
    """

    def __init__(self, config: QwenTowerConfig, before: bool) -> None:
        joined = config.width * config.merge**2
        super().__init__(joined, joined, config.text_width, "gelu")
        self.norm = _norm(config, config.width if before else joined)
        self._before = before
        self._joined = joined

    def __call__(self, hidden: mx.array) -> mx.array:
        """Project patches `(pictures, patches, width)` to `(pictures, tokens, text width)`."""
        if self._before:
            hidden = self.norm(hidden)
        joined = hidden.reshape(len(hidden), -1, self._joined)
        return super().__call__(joined if self._before else self.norm(joined))
