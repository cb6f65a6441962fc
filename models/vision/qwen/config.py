"""Configuration of a Qwen model's vision part, from `config.json` with transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isqrt
from typing import Any, Literal

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.vision.model import Placeholder

_MARKS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_COMMON = {"temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3, "num_heads": 16}
_QWEN2_VL = {
    "tower": _COMMON
    | {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584}
    | {"patch_size": 14, "hidden_act": "quick_gelu"},
    "sections": (16, 24, 24),
    "marks": _MARKS,
}
_QWEN2_5_VL = {
    "tower": _COMMON
    | {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420}
    | {"patch_size": 14, "hidden_act": "silu", "out_hidden_size": 3584}
    | {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 4},
    "sections": (16, 24, 24),
    "marks": _MARKS,
}
_QWEN3_TOWER = _COMMON | {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}
_QWEN3_VL = {
    "tower": _QWEN3_TOWER | {"deepstack_visual_indexes": [8, 16, 24]},
    "sections": (24, 20, 20),
    "marks": _MARKS,
}
_QWEN3_5 = {
    "tower": _QWEN3_TOWER | {"deepstack_visual_indexes": []},
    "sections": (11, 11, 10),
    "marks": {
        "image_token_id": 248056,
        "video_token_id": 248057,
        "vision_start_token_id": 248053,
        "vision_end_token_id": 248054,
    },
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_5_VL,
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
}
"""Defaults of each family, where `config.json` says nothing."""


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
        side: positions along the edge of the learned grid of position embeddings; 0 for none.
        deep: layers whose states are also projected, to be added to the outputs of the language
            model's first layers (DeepStack, arXiv 2406.04334); empty for none.
        text_width: width of the language model.
        patch_bias: True if the embedding of patches has a bias.
        gated: True if norms are RMS norms and feed-forward layers are gated (Qwen2.5-VL).
        window: tokens along the edge of a window of attention; 0 for none.
        full: layers that attend to the whole picture in spite of `window`.
        rate: rotary positions in a second of video; None counts positions by patches.
        stamped: True if each patch in time of a video is shown as a picture of its own, after its
            time as text (Qwen3-VL, arXiv 2511.21631).
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
    patch_bias: bool = True
    gated: bool = False
    window: int = 0
    full: tuple[int, ...] = ()
    rate: float | None = None
    stamped: bool = False

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
    """Return True if `config.json` describes a vision part that the code in this folder runs."""
    return config["model_type"] in FAMILIES and bool(config.get("vision_config"))


def read_tower(config: Mapping[str, Any], source: str) -> QwenTowerConfig:
    """Read the tower's configuration from a model's `config.json`; errors name `source`.

    Raises:
        CorruptModelError: for wrong values.
    """
    if not isinstance(config["vision_config"], Mapping):
        found = type(config["vision_config"]).__name__
        raise CorruptModelError(f"{source}: vision_config is no object but {found}")
    given = {k: v for k, v in config["vision_config"].items() if v is not None}
    if "in_chans" in given:
        given["in_channels"] = given["in_chans"]
    family = config["model_type"]
    try:
        tower = _tower(family, {**FAMILIES[family]["tower"], **given})
    except (TypeError, ValueError) as e:
        raise CorruptModelError(f"{source}: a value of the vision part is wrong: {e}") from e
    _check(tower, source)
    return tower


def _tower(family: str, values: Mapping[str, Any]) -> QwenTowerConfig:
    width, hidden = values["hidden_size"], values.get("intermediate_size", 0)
    text_width = values.get("out_hidden_size", width)
    if family == "qwen2_vl":  # where hidden_size is the language model's
        width, hidden = values["embed_dim"], int(values["embed_dim"] * values["mlp_ratio"])
    patch, merge = int(values["patch_size"]), int(values["spatial_merge_size"])
    return QwenTowerConfig(
        width=int(width),
        hidden=int(hidden),
        layers=int(values["depth"]),
        heads=int(values["num_heads"]),
        patch=patch,
        frames=int(values["temporal_patch_size"]),
        merge=merge,
        side=isqrt(int(values.get("num_position_embeddings", 0))),
        channels=int(values["in_channels"]),
        activation=str(values["hidden_act"]),
        deep=tuple(int(layer) for layer in values.get("deepstack_visual_indexes", ())),
        text_width=int(text_width),
        patch_bias="num_position_embeddings" in values,
        gated=family == "qwen2_5_vl",
        window=int(values.get("window_size", 0)) // max(patch * merge, 1),
        full=tuple(int(layer) for layer in values.get("fullatt_block_indexes", ())),
        rate=float(values["tokens_per_second"]) if family == "qwen2_5_vl" else None,
        stamped=not family.startswith("qwen2"),
    )


def _check(tower: QwenTowerConfig, source: str) -> None:
    sizes = [tower.width, tower.hidden, tower.layers, tower.heads, tower.patch, tower.merge]
    sizes += [tower.frames, tower.channels, tower.text_width]
    sizes += [tower.side] if tower.patch_bias else []
    sizes += [tower.window] if tower.gated else []
    if min(sizes) < 1:
        raise CorruptModelError(f"{source}: the vision tower has sizes below 1: {tower}")
    if tower.width % (4 * tower.heads):
        raise CorruptModelError(
            f"{source}: the vision tower's width {tower.width} is no multiple of 4 x "
            f"{tower.heads} heads"
        )
    if tower.rate is not None and not 0 <= tower.rate < inf:
        raise CorruptModelError(f"{source}: tokens_per_second is {tower.rate}, not a number from 0")
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
    family = config["model_type"]
    sizes = rope.get("mrope_section", FAMILIES[family]["sections"])
    try:
        time, row, column = (int(size) for size in sizes)
    except (TypeError, ValueError) as e:
        raise CorruptModelError(f"{source}: mrope_section is {sizes!r}, not three numbers") from e
    if min(time, row, column) < 0:
        raise CorruptModelError(f"{source}: mrope_section is {sizes!r}, with a number below 0")
    return Sections((time, row, column), interleaved=not family.startswith("qwen2"))


def read_placeholder(config: Mapping[str, Any], kind: Literal["image", "video"]) -> Placeholder:
    """Return the placeholder of a picture or video, with the tokens that begin and end one."""
    marks = FAMILIES[config["model_type"]]["marks"]

    def token(name: str) -> int:
        return int(config.get(name, marks[name]))

    return Placeholder(
        f"<|{kind}_pad|>",
        token(f"{kind}_token_id"),
        before=("<|vision_start|>", token("vision_start_token_id")),
        after=("<|vision_end|>", token("vision_end_token_id")),
    )
