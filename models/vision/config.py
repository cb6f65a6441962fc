"""Configuration of a LLaVA's vision part, from `config.json` with transformers' defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError

_CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {**_CLIP, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_TOWERS = {
    "clip_vision_model": _CLIP,
    "clip_vision": _CLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip_vision": _SIGLIP,
}

_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_LLAVA = {"tower": _CLIP_LARGE, "layer": -2, "select": "default", "image": 32000, "video": None}
_ONEVISION = {
    "tower": _SIGLIP_SO400M,
    "layer": -1,
    "select": "full",
    "image": 151646,
    "video": 151647,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_onevision": _ONEVISION,
}
"""Defaults of each family, where `config.json` says nothing."""


@dataclass(frozen=True)
class TowerConfig:
    """Configuration of a vision transformer, CLIP or SigLIP.

    Attributes:
        width: width of the hidden states.
        hidden: width inside the feed-forward layers.
        layers: number of layers that are run; layers above the highest feature layer are not.
        image_size: pixels along the edge of a tile.
        patch_size: pixels along the edge of a patch.
        class_token: True for CLIP, which has a class token, False for SigLIP.
        feature_layers: layers whose outputs are the features; 0 is the embeddings.
        patches: number of patches along the edge of a tile.
        positions: number of positions of a tile, class token included.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    activation: str
    eps: float
    class_token: bool
    feature_layers: tuple[int, ...]

    @property
    def patches(self) -> int:
        return self.image_size // self.patch_size

    @property
    def positions(self) -> int:
        return self.patches**2 + self.class_token


@dataclass(frozen=True)
class VisionConfig:
    """Configuration of a model's vision part.

    Attributes:
        drop_first: True if features leave out the first position, CLIP's class token.
        text_width: width of the language model.
        activation, bias: the projector's activation, and True if its linear layers have a bias.
        most_tiles: see `AnyRes.most`.
        candidates: `image_grid_pinpoints`, sizes that tiling chooses from; empty if not given.
        image_token, video_token: ids of the tokens that stand for a picture or a video in a
            prompt; None if there is no such token.
        tokens_per_tile: number of features of a tile.
    """

    family: str
    tower: TowerConfig
    drop_first: bool
    text_width: int
    activation: str = "gelu"
    bias: bool = True
    most_tiles: int | None = None
    candidates: tuple[tuple[int, int], ...] = ()
    image_token: int | None = None
    video_token: int | None = None

    @property
    def tokens_per_tile(self) -> int:
        return self.tower.positions - self.drop_first


def read_config(config: Mapping[str, Any], text_width: int, source: str) -> VisionConfig:
    """Read the vision part's configuration from a model's `config.json`.

    Args:
        config: content of the file.
        text_width: width of the language model.
        source: the file that errors name.

    Raises:
        UnsupportedModelError: for a tower or a choice of features that cannot run here.
        CorruptModelError: for wrong values.
    """
    family, assumed = config["model_type"], FAMILIES[config["model_type"]]
    select = config.get("vision_feature_select_strategy", assumed["select"])
    if select not in ("default", "full"):
        raise UnsupportedModelError(
            f"{source}: vision_feature_select_strategy is {select!r}, known are default and full"
        )
    layer = config.get("vision_feature_layer", assumed["layer"])
    try:
        tower = _read_tower(config.get("vision_config") or assumed["tower"], layer, source)
        pinpoints = config.get("image_grid_pinpoints") or ()
        candidates = tuple((int(height), int(width)) for height, width in pinpoints)
    except (TypeError, ValueError) as e:
        raise CorruptModelError(f"{source}: a value of the vision part is wrong: {e}") from e
    found = VisionConfig(
        family=family,
        tower=tower,
        drop_first=select == "default",
        text_width=text_width,
        activation=config.get("projector_hidden_act", "gelu"),
        bias=config.get("multimodal_projector_bias", True),
        most_tiles=_most_tiles(config, source) if family == "llava_onevision" else None,
        candidates=candidates,
        image_token=_token(config, "image", assumed),
        video_token=_token(config, "video", assumed),
    )
    check_square(found, source)
    return found


def check_square(config: VisionConfig, source: str) -> None:
    """Raise `UnsupportedModelError` unless there is one feature per patch of a tile.

    The `llava` family has a single tile and is not checked.
    """
    if config.family != "llava" and config.tokens_per_tile != config.tower.patches**2:
        raise UnsupportedModelError(
            f"{source}: {config.family} needs {config.tower.patches**2} features of a tile and "
            f"its vision_feature_select_strategy leaves {config.tokens_per_tile}: take 'default' "
            "for CLIP, whose class token it drops, and 'full' for SigLIP, which has none"
        )


def _read_tower(given: Mapping[str, Any], layer: Any, source: str) -> TowerConfig:
    kind = given.get("model_type", "clip_vision_model")
    if kind not in _TOWERS:
        raise UnsupportedModelError(
            f"{source}: vision tower {kind!r} is not supported; supported are CLIP and SigLIP "
            "(clip_vision_model, siglip_vision_model)"
        )
    values = {**_TOWERS[kind], **{key: v for key, v in given.items() if v is not None}}
    chosen = feature_layers(layer, int(values["num_hidden_layers"]), source)
    tower = TowerConfig(
        width=int(values["hidden_size"]),
        hidden=int(values["intermediate_size"]),
        layers=max(chosen),
        heads=int(values["num_attention_heads"]),
        image_size=int(values["image_size"]),
        patch_size=int(values["patch_size"]),
        activation=str(values["hidden_act"]),
        eps=float(values["layer_norm_eps"]),
        class_token=_TOWERS[kind] is _CLIP,
        feature_layers=chosen,
    )
    check_tower(tower, source)
    return tower


def check_tower(tower: TowerConfig, source: str) -> None:
    """Raise `CorruptModelError` for sizes below 1 or a width that the heads do not divide."""
    sizes = (tower.width, tower.hidden, tower.heads, tower.patch_size)
    if min(sizes) < 1 or tower.patches < 1:
        raise CorruptModelError(f"{source}: the vision tower has sizes below 1: {tower}")
    if tower.width % tower.heads:
        raise CorruptModelError(
            f"{source}: the vision tower's width {tower.width} is no multiple of its "
            f"{tower.heads} heads"
        )


def feature_layers(chosen: Any, layers: int, source: str) -> tuple[int, ...]:
    """Return the numbers of the layers whose outputs are the features; 0 stands for the embeddings.

    Args:
        chosen: a number or a list of them; negative ones count from the last layer.
        layers: number of layers of the tower.
        source: the file that errors name.

    Raises:
        CorruptModelError: for no layer at all, or a layer that the tower does not have.
    """
    given = chosen if isinstance(chosen, list) else [chosen]
    if not given or not all(isinstance(i, int) and -layers - 1 <= i <= layers for i in given):
        raise CorruptModelError(
            f"{source}: vision_feature_layer is {chosen!r}, the tower has {layers} layers"
        )
    return tuple(i % (layers + 1) for i in given)


def _most_tiles(config: Mapping[str, Any], source: str) -> int:
    ratio = config.get("vision_aspect_ratio", "anyres_max_9")
    match = re.fullmatch(r"anyres_max_([1-9]\d*)", str(ratio))
    if match is None:
        raise UnsupportedModelError(
            f"{source}: vision_aspect_ratio is {ratio!r}, supported is anyres_max_ and a number"
        )
    return int(match[1])


def _token(config: Mapping[str, Any], kind: str, assumed: Mapping[str, Any]) -> int | None:
    token: int | None = config.get(f"{kind}_token_index", config.get(f"{kind}_token_id"))
    return assumed[kind] if token is None else token
