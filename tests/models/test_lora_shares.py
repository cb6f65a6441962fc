"""A rank's share of an adapter, added to its share of a model, is its share of their sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.architectures import supported
from sgl_mlx.models.build import model_classes
from sgl_mlx.models.lora import LoraAdapter
from sgl_mlx.models.lora_shares import share_of
from sgl_mlx.models.shards import can_shard
from tests.models.test_pipelines import Group
from tests.models.toy import toy_config

RANK, SCALE = 3, 0.5
FAULTY = {"prism_hadamard_qwen35"}
"""Architectures whose `shard` in mlx-lm fails on a toy."""
DIVIDED = [
    entry.name
    for entry in supported()
    if entry.name not in FAULTY and can_shard(model_classes({"model_type": entry.name})[0])
]


def drawn(config: dict[str, Any]) -> nn.Module:
    """A toy whose weights are drawn when they are needed, always the same."""
    mx.random.seed(1)
    model_class, args_class = model_classes(config)
    return model_class(args_class.from_dict(config))


def linear(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def adapter_of(model: nn.Module) -> LoraAdapter:
    """An adapter of all linear layers."""
    draw = np.random.default_rng(2)
    shapes = {name: layer.weight.shape for name, layer in linear(model).items()}
    pairs = {
        name: (mx.array(draw.normal(size=(i, RANK))), mx.array(draw.normal(size=(RANK, o))))
        for name, (o, i) in shapes.items()
    }
    return LoraAdapter(pairs, SCALE, Path("adapter"))


def stage(config: dict[str, Any], rank: int) -> nn.Module:
    """The layers of a rank of two."""
    model = drawn(config)
    model.model.pipeline(Group(rank, 2))
    return model


def share(adapter: LoraAdapter, model: nn.Module, config: Any, group: Any) -> LoraAdapter:
    loaded = cast(Any, SimpleNamespace(model=model, config=config, name="toy"))
    return share_of(adapter, loaded, group)


@pytest.mark.parametrize("architecture", DIVIDED)
def test_what_each_rank_adds_is_its_part_of_the_product(architecture: str) -> None:
    config = toy_config(architecture)
    config |= {"vocab_size": 98}  # some architectures divide the vocabulary
    if "text_config" in config:
        config["text_config"] |= {"vocab_size": 98}
    adapter = adapter_of(drawn(config))
    for rank in (0, 1):
        group = cast(Any, Group(rank, 2))
        merged, mine = drawn(config), drawn(config)
        for name, layer in linear(merged).items():
            a, b = adapter.pairs[name]
            layer.weight = layer.weight + SCALE * (a @ b).T
        merged.shard(group)
        mine.shard(group)
        found = share(adapter, mine, config, group).pairs
        expected, layers = dict(merged.named_modules()), dict(mine.named_modules())
        wrong = [
            name
            for name, (a, b) in found.items()
            if not mx.allclose(
                layers[name].weight + SCALE * (a @ b).T, expected[name].weight, atol=1e-5
            )
        ]
        assert not wrong
        assert found.keys() == adapter.pairs.keys()


def test_a_rank_with_whole_layers_keeps_their_matrices_alone() -> None:
    config = toy_config("qwen2")
    adapter = adapter_of(drawn(config))
    stages = [stage(config, rank) for rank in (0, 1)]
    group = cast(Any, Group(0, 2))
    found = [share(adapter, model, config, group).pairs for model in stages]
    in_layers = [{name for name in pairs if ".layers." in name} for pairs in found]
    assert in_layers[0] | in_layers[1] == {n for n in adapter.pairs if ".layers." in n}
    assert not in_layers[0] & in_layers[1]
    assert all(a is adapter.pairs[n][0] for pairs in found for n, (a, _) in pairs.items())


def test_a_layer_that_no_rank_has_is_refused_on_every_rank() -> None:
    config = toy_config("qwen2")
    adapter = adapter_of(drawn(config))
    pair = adapter.pairs["model.layers.0.mlp.up_proj"]
    adapter = replace(adapter, pairs={"model.layers.77.mlp.up_proj": pair})
    for rank in (0, 1):
        with pytest.raises(CorruptModelError, match=r"no linear layer model\.layers\.77"):
            share(adapter, stage(config, rank), config, Group(rank, 2))
