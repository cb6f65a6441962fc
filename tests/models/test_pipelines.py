"""Division of a model's layers among ranks: each layer is on one rank, with its KV and weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.architectures import adapter_for, supported
from sgl_mlx.models.build import model_classes
from sgl_mlx.models.pipelines import can_pipeline
from sgl_mlx.models.shards import divide, share
from tests.models.toy import toy_config, toy_model

PAGE = Path(__file__).parents[2] / "docs" / "ranks.md"


class Group:
    """As much of MLX's group as a division needs."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a rank run without the others: what it sends comes back."""
    monkeypatch.setattr(mx.distributed, "recv_like", lambda hidden, _: hidden)
    monkeypatch.setattr(mx.distributed, "send", lambda hidden, _: hidden)


def stage(architecture: str, rank: int, ranks: int, **changes: Any) -> nn.Module:
    """A rank's part of a toy."""
    config = toy_config(architecture) | changes
    model = toy_model(architecture, config)
    group = cast(mx.distributed.Group, Group(rank, ranks))
    divide(model, config, group, "the model", whole_layers=True)
    return model


def described(architecture: str) -> nn.Module:
    """A toy without its weights being computed."""
    config = toy_config(architecture)
    model_class, args_class = model_classes(config)
    return model_class(args_class.from_dict(config))


def weights(model: nn.Module) -> set[str]:
    return {name for name, _ in tree_flatten(model.parameters())}


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_layer_is_on_one_rank(ranks: int) -> None:
    config = toy_config("qwen2") | {"num_hidden_layers": 5}
    whole = toy_model("qwen2", config)
    stages = [stage("qwen2", rank, ranks, num_hidden_layers=5) for rank in range(ranks)]
    adapters = [adapter_for(model) for model in stages]
    assert sum(len(adapter.layers) for adapter in adapters) == 5
    assert all(adapter.layers and adapter.pipelined for adapter in adapters)
    assert not Adapter(whole).pipelined
    assert set.union(*map(weights, stages)) == weights(whole)
    common = set.intersection(*map(weights, stages))
    assert not any(".layers." in name for name in common)
    assert any("embed_tokens" in name for name in common)


def test_the_page_lists_the_architectures_with_a_pipeline() -> None:
    text = PAGE.read_text("utf-8").partition("pipelines of mlx-lm that run here:")[2]
    can = {entry.name for entry in supported() if can_pipeline(described(entry.name))}
    assert set(re.findall(r"\w+", text.partition("\n\n")[2].partition("\n\n")[0])) == can


def test_an_architecture_without_a_pipeline_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no pipeline for the architecture 'llama'"):
        stage("llama", 0, 2)


def test_an_architecture_that_has_a_pipeline_alone_takes_it_unasked() -> None:
    config = toy_config("qwen3_next")
    model = toy_model("qwen3_next", config)
    group = cast(mx.distributed.Group, Group(0, 2))
    divide(model, config, group, "the model", whole_layers=False)
    assert adapter_for(model).pipelined


def test_more_ranks_than_layers_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot be divided among 9 ranks"):
        stage("qwen2", 0, 9)


def test_a_rank_without_a_kind_of_layer_is_refused() -> None:
    kinds = ["full_attention", "sliding_attention"]
    with pytest.raises(UnsupportedModelError, match=r"would have no layers"):
        stage("ministral3", 0, 2, num_hidden_layers=2, layer_types=kinds, sliding_window=4)


def test_a_share_of_whole_layers_is_the_largest_of_all_ranks() -> None:
    config = {"vocab_size": 100, "hidden_size": 10, "num_hidden_layers": 5}
    assert share(config, 10_000, 2, whole_layers=True) == pytest.approx(0.2 + 0.8 * 3 / 5)
    assert share(config, 10_000, 5, whole_layers=True) == pytest.approx(0.2 + 0.8 / 5)
