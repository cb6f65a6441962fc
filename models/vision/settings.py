"""Settings of picture processing, read from a model folder and completed by defaults.

As in transformers, `processor_config.json` is read if it has an `image_processor`, else
`preprocessor_config.json`. Processors based on torchvision ("Fast") are run as the Pillow
processors are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models.safetensors_file import read_json
from sgl_mlx.models.vision.config import VisionConfig
from sgl_mlx.models.vision.pixels import PixelSettings, Size

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SIDES = (384, 768, 1152, 1536, 1920, 2304)
_COMMON = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_CROPPED = {
    **_COMMON,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava": _CROPPED,
    "llava_next": {
        **_CROPPED,
        "image_grid_pinpoints": [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)],
    },
    "llava_onevision": {
        **_COMMON,
        "size": {"height": 384, "width": 384},
        "image_grid_pinpoints": [(height, width) for height in _SIDES for width in _SIDES],
    },
}

T = TypeVar("T")


def read_settings(folder: Path, config: VisionConfig) -> PixelSettings:
    """Read a model folder's settings; without a settings file, return `default_values`.

    Raises:
        CorruptModelError: for a value of the wrong kind, or tiles that do not fit the tower.
        UnsupportedModelError: as `parse_settings`.
    """
    found = find_settings(folder)
    path, given = found or (folder / "preprocessor_config.json", default_values(config))
    settings = parse_settings(given, config, str(path))
    check_tiles(settings, config, str(path))
    return settings


def default_values(config: VisionConfig) -> dict[str, Any]:
    """Return the sizes of a family's default settings, for the tower's own image size."""
    side = config.tower.image_size
    square = {"height": side, "width": side}
    if config.family == "llava_onevision":
        return {"size": square}
    return {"size": {"shortest_edge": side}, "crop_size": square}


def parse_settings(given: Mapping[str, Any], config: VisionConfig, source: str) -> PixelSettings:
    """Parse a settings file's entries, completed by the family's defaults.

    Args:
        source: the file that errors name.

    Raises:
        CorruptModelError: for a value of the wrong kind.
        UnsupportedModelError: for a size with both a shortest and a longest edge.
    """
    values = {**_DEFAULTS[config.family], **{k: v for k, v in given.items() if v is not None}}

    def read(key: str, parse: Callable[[Any], T], switch: str | None = None) -> T | None:
        if switch is not None and not values.get(switch):
            return None
        return read_value(values, key, parse, source)

    resample = read("resample", filter_of_pillow)
    return PixelSettings(
        size=read("size", _resized, "do_resize"),
        resample=3 if resample is None else resample,
        crop=read("crop_size", _cropped, "do_center_crop"),
        rescale=read("rescale_factor", number, "do_rescale"),
        mean=read("image_mean", channels, "do_normalize"),
        std=read("image_std", divisors, "do_normalize"),
        square=config.family == "llava" and bool(values.get("do_pad")),
        candidates=read("image_grid_pinpoints", _candidates) or (),
    )


def read_value(
    values: Mapping[str, Any], key: str, parse: Callable[[Any], T], source: str
) -> T | None:
    """Parse one entry of a settings file; None if it is missing.

    Raises:
        CorruptModelError: for a value that `parse` does not take; it names `source` and the key.
        UnsupportedModelError: as `parse` raises it; it names `source` and the key too.
    """
    if values.get(key) is None:
        return None
    try:
        return parse(values[key])
    except (TypeError, ValueError, KeyError) as e:
        raise CorruptModelError(f"{source}: {key} is {values[key]!r}: {e}") from e
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{source}: {key} is {values[key]!r}: {e}") from e


def check_tiles(settings: PixelSettings, config: VisionConfig, source: str) -> None:
    """Raise `CorruptModelError` unless tiles have the size that the tower takes.

    Families with any-resolution tiling also need candidates. These must be multiples of the tower's
    size, and equal to `config.candidates` if `config` has some.
    """
    side = config.tower.image_size
    if settings.tile != (side, side):
        height, width = settings.tile
        raise CorruptModelError(
            f"{source}: pictures become {width} x {height}, the vision tower takes {side} x {side}"
        )
    if config.family == "llava":
        return
    if not settings.candidates or any(h % side or w % side for h, w in settings.candidates):
        raise CorruptModelError(
            f"{source}: image_grid_pinpoints must be multiples of {side}, found "
            f"{list(settings.candidates)}"
        )
    if config.candidates and set(config.candidates) != set(settings.candidates):
        raise CorruptModelError(
            f"{source}: image_grid_pinpoints differ from those in config.json: "
            f"{list(settings.candidates)} and {list(config.candidates)}"
        )


def find_settings(
    folder: Path,
    kind: str = "image_processor",
    files: Sequence[str] = ("preprocessor_config.json",),
) -> tuple[Path, Mapping[str, Any]] | None:
    """Read a model folder's settings file; returns its path and entries, None if there is none.

    Args:
        kind: name of the settings in `processor_config.json`.
        files: files that have them otherwise; the first that exists is read.
    """
    nested = folder / "processor_config.json"
    inner = read_json(nested).get(kind) if nested.is_file() else None
    if isinstance(inner, dict):
        return nested, inner
    plain = next((folder / name for name in files if (folder / name).is_file()), None)
    return (plain, read_json(plain)) if plain else None


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError("it must be a number")
    return float(value)


def filter_of_pillow(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 5:
        raise ValueError("it must be one of Pillow's filters, 0 to 5")
    return value


def whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("edges are whole numbers from 1")
    return value


def _resized(value: Any) -> int | Size:
    if isinstance(value, dict) and value.get("shortest_edge") is not None:
        if value.get("longest_edge") is not None:
            raise UnsupportedModelError("a shortest and a longest edge together are not supported")
        return whole_number(value["shortest_edge"])
    return whole_number(value) if isinstance(value, int) else _cropped(value)


def _cropped(value: Any) -> Size:
    if isinstance(value, int):
        return whole_number(value), whole_number(value)
    height, width = (value["height"], value["width"]) if isinstance(value, dict) else value
    return whole_number(height), whole_number(width)


def channels(value: Any) -> tuple[float, ...]:
    found = [value] * 3 if isinstance(value, Real) else value
    if len(found) != 3:
        raise ValueError("it must be three numbers, one for each of red, green and blue")
    return tuple(number(value) for value in found)


def divisors(value: Any) -> tuple[float, ...]:
    found = channels(value)
    if 0.0 in found:
        raise ValueError("values are divided by it, so none may be 0")
    return found


def _candidates(value: Any) -> tuple[Size, ...]:
    return tuple((whole_number(height), whole_number(width)) for height, width in value)
