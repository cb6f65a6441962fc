"""Configurations of Qwen's vision parts: sections of the rotary frequencies, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.vision.qwen.config import (
    Sections,
    has_vision,
    read_placeholder,
    read_sections,
    read_tower,
)
from tests.models.vision.conftest import read_golden

CONFIG = read_golden("qwen3_vl").config
sizes = st.integers(0, 40)


@given(sizes, sizes, sizes)
def test_interleaved_sections_hold_as_many_frequencies_as_they_say(
    row: int, column: int, more: int
) -> None:
    time = max(2 * row - 1 - column, 2 * column - row, 0) + more  # so many that all have room
    axes = Sections((time, row, column), True).axes()
    assert [axes.count(axis) for axis in range(3)] == [time, row, column]
    assert all(axes[i] in (0, i % 3) for i in range(len(axes)))


def test_sections_may_come_one_after_another() -> None:
    assert Sections((2, 1, 3), False).axes() == [0, 0, 1, 2, 2, 2]


def test_published_sections_are_assumed() -> None:
    text = {"model_type": "qwen3_5", "text_config": {"rope_parameters": {"rope_theta": 1e7}}}
    assert read_sections(text, "config.json").sizes == (11, 11, 10)
    old = {"model_type": "qwen3_vl", "text_config": {"rope_scaling": {"mrope_section": [1, 2, 3]}}}
    assert read_sections(old, "config.json").sizes == (1, 2, 3)


@pytest.mark.parametrize("given", [[1, 2], 5, "abc", [1, 2, -1]])
def test_wrong_sections_are_refused(given: Any) -> None:
    config = {"model_type": "qwen3_vl", "rope_scaling": {"mrope_section": given}}
    with pytest.raises(CorruptModelError, match="mrope_section"):
        read_sections(config, "config.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patch_size": 0}, "below 1"),
        ({"hidden_size": "wide"}, "wrong"),
        ({"num_heads": 3}, "no multiple"),
        ({"deepstack_visual_indexes": [7]}, "has 3 layers"),
    ],
)
def test_wrong_towers_are_refused(change: dict[str, Any], told: str) -> None:
    config = CONFIG | {"vision_config": CONFIG["vision_config"] | change}
    with pytest.raises(CorruptModelError, match=told):
        read_tower(config, "config.json")


@pytest.mark.parametrize("rate", [-1, "inf", "nan", "quick"])
def test_a_wrong_rate_of_positions_is_refused(rate: Any) -> None:
    config = read_golden("qwen2_5_vl").config
    wrong = config | {"vision_config": config["vision_config"] | {"tokens_per_second": rate}}
    with pytest.raises(CorruptModelError, match=r"tokens_per_second|wrong"):
        read_tower(wrong, "config.json")


def test_a_window_smaller_than_a_token_is_refused() -> None:
    config = read_golden("qwen2_5_vl").config
    small = config | {"vision_config": config["vision_config"] | {"window_size": 7}}
    with pytest.raises(CorruptModelError, match="below 1"):
        read_tower(small, "config.json")


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3}
        | {"hidden_size": 1536, "patch_size": 14, "spatial_merge_size": 2},
        {"width": 1280, "hidden": 5120, "text_width": 1536, "cell": 28, "window": 0, "side": 0},
    ),
    "qwen2_5_vl": (
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048}
        | {"in_chans": 3, "window_size": 112, "spatial_patch_size": 14, "tokens_per_second": 2},
        {"width": 1280, "text_width": 2048, "window": 4, "full": (7, 15, 23, 31), "gated": True}
        | {"rate": 2.0, "stamped": False},
    ),
    "qwen3_vl": (
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048}
        | {"deepstack_visual_indexes": [5, 11, 17], "patch_size": 16},
        {"side": 48, "deep": (5, 11, 17), "cell": 32, "features": 8192, "patch_bias": True},
    ),
    "qwen3_5": (
        {"depth": 27, "hidden_size": 1152, "out_hidden_size": 5120},
        {"side": 48, "deep": (), "features": 5120, "heads": 16},
    ),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_towers_are_read(family: str) -> None:
    given, expected = PUBLISHED[family]
    tower = read_tower({"model_type": family, "vision_config": given}, "config.json")
    assert {name: getattr(tower, name) for name in expected} == expected


def test_the_published_marks_are_assumed() -> None:
    found = read_placeholder({"model_type": "qwen3_5_moe"}, "image")
    assert found.id == 248056
    assert read_placeholder({"model_type": "qwen3_5_moe"}, "video").id == 248057
    assert found.before == ("<|vision_start|>", 248053)


def test_a_model_of_text_alone_has_no_vision() -> None:
    assert not has_vision({"model_type": "qwen3_5"})
    assert not has_vision({"model_type": "llama", "vision_config": {"depth": 1}})
