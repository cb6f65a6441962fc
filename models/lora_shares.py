"""A rank's share of a LoRA adapter, which fits its share of the model.

Where layers are divided among ranks, an adapter keeps the matrices of the rank's own layers. Where
every layer is divided, B loses the outputs, or A the inputs, of which other ranks have the weights.
Which those are is left to mlx-lm's own `shard`, which may take heads or parts of a matrix in any
order: it divides a model that has B or A in the places of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.models.build import model_classes
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.models.lora import LoraAdapter, Pair, check, read_adapter, with_adapter
from sgl_mlx.models.trunk import is_pipelined


def with_adapter_in(
    folder: str, loaded: LoadedModel, group: mx.distributed.Group | None = None
) -> LoadedModel:
    """Return a copy of a model, or of a rank's share of one, with the adapter in a folder.

    Args:
        group: the ranks among which `loaded` was divided; None if it is whole.

    Raises:
        ModelError: see `lora.read_adapter` and `lora.with_adapter`.
    """
    adapter = read_adapter(folder)
    if group is not None:
        adapter = share_of(adapter, loaded, group)
    return with_adapter(loaded, adapter, f"{loaded.name}:{Path(folder).name}")


def share_of(adapter: LoraAdapter, loaded: LoadedModel, group: mx.distributed.Group) -> LoraAdapter:
    """Return the part of an adapter that fits a rank's share of a model.

    Args:
        adapter: an adapter of the whole model.
        loaded: the rank's share.

    Raises:
        CorruptModelError: the adapter does not fit the whole model; see `lora.check`.
    """
    model_class, args_class = model_classes(loaded.config)
    whole = model_class(args_class.from_dict(loaded.config))  # without computing weights
    check(adapter, dict(whole.named_modules()), loaded.name)
    mine = dict(loaded.model.named_modules())
    if is_pipelined(loaded.model):
        return replace(adapter, pairs={n: p for n, p in adapter.pairs.items() if n in mine})
    return replace(adapter, pairs=_divided(adapter.pairs, whole, mine, group))


def _divided(
    pairs: Mapping[str, Pair],
    whole: nn.Module,
    mine: Mapping[str, nn.Module],
    group: mx.distributed.Group,
) -> dict[str, Pair]:
    """Divide A or B of each layer as `whole.shard` divides its weights.

    Args:
        whole: a model that is not divided yet; its weights are lost.
        mine: the layers of this rank's share, by name.
    """
    layers = dict(whole.named_modules())
    by_outputs = {n for n, (_, b) in pairs.items() if _outputs(mine[n]) < b.shape[1]}
    by_inputs = {n for n, (a, _) in pairs.items() if _inputs(mine[n]) < a.shape[0]}
    for name in by_outputs:
        layers[name].weight = pairs[name][1].T
    for name in by_inputs - by_outputs:
        layers[name].weight = pairs[name][0].T
    whole.shard(group)
    layers = dict(whole.named_modules())
    return {
        name: (
            layers[name].weight.T if name in by_inputs - by_outputs else a,
            layers[name].weight.T if name in by_outputs else b,
        )
        for name, (a, b) in pairs.items()
    }


def _outputs(layer: nn.Module) -> int:
    return int(layer.weight.shape[0])


def _inputs(layer: nn.Module) -> int:
    columns = int(layer.weight.shape[1])
    return columns * 32 // layer.bits if hasattr(layer, "bits") else columns
