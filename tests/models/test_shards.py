"""Division of models among ranks: which can be divided, into how many parts, and how large."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.architectures import supported
from sgl_mlx.models.shards import can_shard, layers_of_rank, shard, share
from tests.models.toy import toy_config, toy_model

PAGE = Path(__file__).parents[2] / "docs" / "ranks.md"


class Group:
    """As much of MLX's group as refusals need."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size


def divide(architecture: str, ranks: int, **changes: Any) -> None:
    config = toy_config(architecture) | changes
    group = cast(mx.distributed.Group, Group(ranks))
    shard(toy_model(architecture, config), config, group, "the model")


def test_the_page_lists_the_architectures_that_can_be_divided() -> None:
    text = PAGE.read_text("utf-8").partition("of those that run here:")[2].partition("Toys")[0]
    names = [entry.name for entry in supported()]
    modules = {name: importlib.import_module(f"mlx_lm.models.{name}") for name in names}
    can = {name for name, module in modules.items() if can_shard(module.Model)}
    assert set(re.findall(r"\w+", text)) == can
    assert len(can) == 26


def test_an_architecture_that_cannot_be_divided_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"divide the architecture 'gemma2' among 2"):
        divide("gemma2", 2)


@pytest.mark.parametrize(
    ("heads", "ranks", "told"),
    [
        ((9, 3), 2, "layer 0 has 9 query heads, .* 2 ranks equally; 3, 9 ranks would fit"),
        ((8, 2), 3, "layer 0 has 8 query heads, .* 3 ranks equally; 2, 4, 8 ranks would fit"),
        ((6, 3), 2, "layer 0 has 3 key/value heads, .* 2 ranks equally; 3 ranks would fit"),
        ((12, 2), 3, "layer 0 has 2 key/value heads, .* 3 ranks equally; 2 ranks would fit"),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_numbers(
    heads: tuple[int, int], ranks: int, told: str
) -> None:
    query, shared = heads
    with pytest.raises(UnsupportedModelError, match=told):
        divide("llama", ranks, num_attention_heads=query, num_key_value_heads=shared, head_dim=8)


def test_a_share_is_the_embeddings_and_a_part_of_the_rest() -> None:
    config = {"vocab_size": 100, "hidden_size": 10}
    assert share(config, 10_000, 4) == pytest.approx(0.2 + 0.8 / 4)
    assert share(config | {"tie_word_embeddings": True}, 10_000, 4) == pytest.approx(0.1 + 0.9 / 4)
    assert share({"text_config": config}, 10_000, 2) == pytest.approx(0.6)
    assert share(config, 1_000, 2) == 1.0
    assert share({}, 0, 2) == 0.5
    assert all(share(config, parameters, 1) == 1 for parameters in range(1_000, 9_000, 7))


def test_a_rank_keeps_a_part_of_the_heads_of_each_layer_or_a_part_of_the_layers() -> None:
    heads, latents = LayerShape(4, 8, 8), LayerShape(1, 24, 16, values_in_keys=True)
    of_a_half = LayerShape(2, 8, 8)
    assert layers_of_rank([heads, latents, heads], 2) == [of_a_half, latents, of_a_half]
    assert layers_of_rank([heads], 8) == [LayerShape(1, 8, 8)]
    assert layers_of_rank([heads, latents, heads], 2, whole_layers=True) == [heads, latents]
    assert layers_of_rank([heads, latents], 1) == [heads, latents]
