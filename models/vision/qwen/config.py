"""Configuration of a Qwen model's vision part, from `config.json` with transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.vision.model import Placeholder

_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "in_channels": 3,
    "hidden_act": "gelu_pytorch_tanh",
}
_QWEN3_VL = {
    "deep": [8, 16, 24],
    "image_token_id": 151655,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_QWEN3_5 = {
    "deep": [],
    "image_token_id": 248056,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
}
"""Defaults of each family, where `config.json` says nothing."""

_SECTIONS = {"qwen3_vl": (24, 20, 20), "qwen3_5": (11, 11, 10)}


@dataclass(frozen=True)
class QwenTowerConfig:
    """Configuration of a vision transformer over a grid of patches.

    Attributes:
        width: width of the hidden states.
        hidden: width inside the feed-forward layers.
        layers: number of layers.
        patch: pixels along the edge of a patch.
        frames: frames in a patch; a still picture fills them with copies.
        merge: patches along the edge of the square that becomes one token.
        side: positions along the edge of the learned grid of position embeddings.
        deep: layers whose states are also projected, to be added to the outputs of the language
            model's first layers (DeepStack, arXiv 2406.04334); empty for none.
        text_width: width of the language model.
        cell: pixels along the edge of a token.
        features: width of a token's features: those that replace its embedding, then those of
            each `deep` layer.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    patch: int
    frames: int
    merge: int
    side: int
    channels: int
    activation: str
    deep: tuple[int, ...]
    text_width: int

    @property
    def cell(self) -> int:
        return self.patch * self.merge

    @property
    def features(self) -> int:
        return self.text_width * (1 + len(self.deep))


@dataclass(frozen=True)
class Sections:
    """Division of the rotary frequencies among a token's time, row and column (M-RoPE).

    Attributes:
        sizes: number of frequencies of time, row and column.
        interleaved: True if the three alternate along the frequencies, False if they come in
            turn.
    """

    sizes: tuple[int, int, int]
    interleaved: bool

    def axes(self) -> list[int]:
        """List for each frequency whether it turns by time (0), row (1) or column (2).

        Interleaved, every third frequency from 1 on belongs to the row and every third from 2 on
        to the column, as many as `sizes` says; all others belong to the time.
        """
        total = sum(self.sizes)
        if not self.interleaved:
            return [axis for axis, size in enumerate(self.sizes) for _ in range(size)]
        axes = [0] * total
        for axis in (1, 2):
            for i in range(axis, min(3 * self.sizes[axis], total), 3):
                axes[i] = axis
        return axes


def has_vision(config: Mapping[str, Any]) -> bool:
    """Return True if `config.json` describes a vision part that this folder runs."""
    return config["model_type"] in FAMILIES and bool(config.get("vision_config"))


def read_tower(config: Mapping[str, Any], source: str) -> QwenTowerConfig:
    """Read the tower's configuration from a model's `config.json`; errors name `source`.

    Raises:
        CorruptModelError: for wrong values, or features of another width than the language model.
    """
    given = {k: v for k, v in config["vision_config"].items() if v is not None}
    values = {**_TOWER, **given}
    deep = given.get("deepstack_visual_indexes", FAMILIES[config["model_type"]]["deep"])
    try:
        tower = QwenTowerConfig(
            width=int(values["hidden_size"]),
            hidden=int(values["intermediate_size"]),
            layers=int(values["depth"]),
            heads=int(values["num_heads"]),
            patch=int(values["patch_size"]),
            frames=int(values["temporal_patch_size"]),
            merge=int(values["spatial_merge_size"]),
            side=isqrt(int(values["num_position_embeddings"])),
            channels=int(values["in_channels"]),
            activation=str(values["hidden_act"]),
            deep=tuple(int(layer) for layer in deep),
            text_width=int(values["out_hidden_size"]),
        )
    except (TypeError, ValueError) as e:
        raise CorruptModelError(f"{source}: a value of the vision part is wrong: {e}") from e
    _check(tower, source)
    return tower


def _check(tower: QwenTowerConfig, source: str) -> None:
    sizes = (tower.width, tower.hidden, tower.layers, tower.heads, tower.patch, tower.merge)
    if min(*sizes, tower.frames, tower.side, tower.channels, tower.text_width) < 1:
        raise CorruptModelError(f"{source}: the vision tower has sizes below 1: {tower}")
    if tower.width % (4 * tower.heads):
        raise CorruptModelError(
            f"{source}: the vision tower's width {tower.width} is no multiple of 4 x "
            f"{tower.heads} heads"
        )
    if any(not 0 <= layer < tower.layers for layer in tower.deep):
        raise CorruptModelError(
            f"{source}: deepstack_visual_indexes is {list(tower.deep)}, the vision tower has "
            f"{tower.layers} layers"
        )


def read_sections(config: Mapping[str, Any], source: str) -> Sections:
    """Read how the language model turns tokens by time, row and column.

    Raises:
        CorruptModelError: for sections that are not three whole numbers from 0.
    """
    text = config.get("text_config") or config
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    assumed = _SECTIONS["qwen3_5" if "qwen3_5" in config["model_type"] else "qwen3_vl"]
    sizes = rope.get("mrope_section", assumed)
    try:
        time, row, column = (int(size) for size in sizes)
    except (TypeError, ValueError) as e:
        raise CorruptModelError(f"{source}: mrope_section is {sizes!r}, not three numbers") from e
    if min(time, row, column) < 0:
        raise CorruptModelError(f"{source}: mrope_section is {sizes!r}, with a number below 0")
    return Sections((time, row, column), True)


def read_placeholder(config: Mapping[str, Any]) -> Placeholder:
    """Return the placeholder of a picture, with the tokens that begin and end one."""
    assumed = FAMILIES[config["model_type"]]

    def token(name: str) -> int:
        return int(config.get(name, assumed[name]))

    return Placeholder(
        "<|image_pad|>",
        token("image_token_id"),
        before=("<|vision_start|>", token("vision_start_token_id")),
        after=("<|vision_end|>", token("vision_end_token_id")),
    )
