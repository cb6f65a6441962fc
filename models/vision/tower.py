"""Vision transformer of CLIP and SigLIP, and the projector to the language model's width.

CLIP (arXiv 2103.00020, section 2.4) has a class token and a norm before the first layer. SigLIP
(arXiv 2303.15343) has neither, but a bias in the patch embedding. Parameters have transformers'
names. Parts that no feature layer needs (the last blocks, the final norm, the pooling head) are
left out.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.vision.config import TowerConfig, VisionConfig

_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "gelu_new": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,
    "relu": nn.relu,
    "silu": nn.silu,
}
_CHANNELS = 3


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """Find an activation by transformers' name.

    Raises:
        UnsupportedModelError: for an unknown name.
    """
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModelError(f"activation {name!r} is not supported; supported are {known}")
    return _ACTIVATIONS[name]


class VisionNetwork(nn.Module):
    """Vision part of a LLaVA model: tower, projector, and a newline embedding in some families."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self._drop_first = config.drop_first
        self.vision_tower = Tower(config.tower)
        self.multi_modal_projector = Projector(config)
        if config.family != "llava":
            self.image_newline = mx.zeros((config.text_width,))

    @property
    def newline(self) -> mx.array | None:
        return self.image_newline if "image_newline" in self else None

    def __call__(self, pixels: mx.array) -> mx.array:
        """Encode tiles `(tiles, height, width, 3)` to features `(tiles, positions, text width)`."""
        projected: mx.array = self.multi_modal_projector(self.select(pixels))
        return projected

    def select(self, pixels: mx.array) -> mx.array:
        """Compute features before projection: `(tiles, positions, width of all chosen layers)`."""
        states = self.vision_tower(pixels)
        if self._drop_first:
            states = [state[:, 1:] for state in states]
        return mx.concatenate(states, axis=-1) if len(states) > 1 else states[0]


class Projector(nn.Module):
    """Projector from features to the language model's width, by two linear layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.tower.width * len(config.tower.feature_layers)
        self.linear_1 = nn.Linear(width, config.text_width, bias=config.bias)
        self.linear_2 = nn.Linear(config.text_width, config.text_width, bias=config.bias)
        self._activate = activation(config.activation)

    def __call__(self, features: mx.array) -> mx.array:
        projected: mx.array = self.linear_2(self._activate(self.linear_1(features)))
        return projected


class Tower(nn.Module):
    """Vision transformer from tiles `(tiles, height, width, 3)` to a state per feature layer."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self._chosen = config.feature_layers
        self.embeddings = Embeddings(config)
        if config.class_token:
            self.pre_layrnorm = nn.LayerNorm(config.width, config.eps)
        self.encoder = Encoder(config)

    def __call__(self, pixels: mx.array) -> list[mx.array]:
        hidden = self.embeddings(pixels)
        if "pre_layrnorm" in self:
            hidden = self.pre_layrnorm(hidden)
        states = {0: hidden} if 0 in self._chosen else {}
        for index, layer in enumerate(self.encoder.layers, start=1):
            hidden = layer(hidden)
            if index in self._chosen:
                states[index] = hidden
        return [states[index] for index in self._chosen]


class Encoder(nn.Module):
    """Container of the layers, named as in checkpoints."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.layers)]


class Embeddings(nn.Module):
    """Embeddings of patches, by a linear layer, plus embeddings of positions."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self._patch, self._side = config.patch_size, config.patches
        inputs = config.patch_size**2 * _CHANNELS
        self.patch_embedding = nn.Linear(inputs, config.width, bias=not config.class_token)
        self.position_embedding = nn.Embedding(config.positions, config.width)
        if config.class_token:
            self.class_embedding = mx.zeros((config.width,))

    def __call__(self, pixels: mx.array) -> mx.array:
        positions = self.position_embedding(mx.arange(self._positions))
        patches = self.patch_embedding(self._patches(pixels).astype(positions.dtype))
        if "class_embedding" in self:
            first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
            patches = mx.concatenate([first.astype(patches.dtype), patches], axis=1)
        embedded: mx.array = patches + positions
        return embedded

    @property
    def _positions(self) -> int:
        return self._side**2 + ("class_embedding" in self)

    def _patches(self, pixels: mx.array) -> mx.array:
        """Cut tiles into patches `(tiles, patches, patch * patch * 3)`; drops partial patches."""
        side, patch, count = self._side, self._patch, len(pixels)
        whole = pixels[:, : side * patch, : side * patch]
        split = whole.reshape(count, side, patch, side, patch, _CHANNELS).swapaxes(2, 3)
        return split.reshape(count, side * side, -1)


class Layer(nn.Module):
    """Transformer layer: attention and feed-forward, each after a norm of its own."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, config.eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = FeedForward(config)

    def __call__(self, hidden: mx.array) -> mx.array:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        mixed: mx.array = hidden + self.mlp(self.layer_norm2(hidden))
        return mixed


class SelfAttention(nn.Module):
    """Multi-head attention without a mask."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self._scale = (config.width // config.heads) ** -0.5
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.width, config.width))

    def __call__(self, hidden: mx.array) -> mx.array:
        queries, keys, values = (
            project(hidden).reshape(*hidden.shape[:2], self._heads, -1).swapaxes(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self._scale)
        projected: mx.array = self.out_proj(mixed.swapaxes(1, 2).reshape(hidden.shape))
        return projected


class FeedForward(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)
        self._activate = activation(config.activation)

    def __call__(self, hidden: mx.array) -> mx.array:
        projected: mx.array = self.fc2(self._activate(self.fc1(hidden)))
        return projected
