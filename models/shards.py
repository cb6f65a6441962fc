"""Division of a model among ranks, most often by mlx-lm's own `shard` (tensor parallelism).

Every rank keeps some of the heads of each attention, and some columns or rows of the other
matrices; mlx-lm's layers add up what the ranks computed. The adapter sees the rank's own heads
alone, since it finds a model's shapes by running it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter, LayerShape
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.build import model_classes
from sgl_mlx.models.pipelines import can_pipeline, pipeline


def divide(
    model: nn.Module,
    config: dict[str, Any],
    group: mx.distributed.Group,
    name: str,
    whole_layers: bool,
) -> None:
    """Keep a rank's share of a model's weights, in place and lazily.

    Args:
        model: a model whose weights are not evaluated yet, so that the weights of other ranks are
            never in memory. No adapter may have been made for it.
        config: the model's configuration.
        name: the model, for errors.
        whole_layers: True divides the layers among the ranks (`pipelines.pipeline`), False divides
            every layer (`shard`), if mlx-lm can; else the layers are divided, too.

    Raises:
        UnsupportedModelError: the architecture cannot be divided, or not by this number of ranks.
    """
    if can_pipeline(model) and (whole_layers or not can_shard(type(model))):
        pipeline(model, config, group, name)
    elif whole_layers:
        architecture = type(model).__module__.rpartition(".")[2]
        raise UnsupportedModelError(
            f"{name}: mlx-lm has no pipeline for the architecture {architecture!r}; docs/ranks.md "
            "lists those that it has"
        )
    else:
        shard(model, config, group, name)


def can_shard(model_class: type[nn.Module]) -> bool:
    """Return True if an architecture can be divided among ranks."""
    return callable(getattr(model_class, "shard", None))


def shard(model: nn.Module, config: dict[str, Any], group: mx.distributed.Group, name: str) -> None:
    """Keep a rank's heads, columns and rows of every layer; see `divide`.

    Raises:
        UnsupportedModelError: the architecture cannot be divided, or not by this number of ranks.
    """
    architecture, ranks = type(model).__module__.rpartition(".")[2], group.size()
    if not can_shard(type(model)):
        raise UnsupportedModelError(
            f"{name}: mlx-lm cannot divide the architecture {architecture!r} among {ranks} ranks; "
            "docs/ranks.md lists those that it can"
        )
    model_class, args_class = model_classes(config)
    whole = adapter_for(model_class(args_class.from_dict(config)))  # without computing weights
    _check_heads(whole, ranks, name)
    try:
        model.shard(group)
        mine = adapter_for(model)
    except (ValueError, AssertionError, ZeroDivisionError, UnsupportedModelError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be divided among {ranks} ranks: {error}"
        ) from error
    _check_share(whole, mine, ranks, name)


def share(
    config: Mapping[str, Any], parameters: int, ranks: int, whole_layers: bool = False
) -> float:
    """Estimate the largest share of a model's weights, from 0 to 1, that any rank holds.

    Embeddings and the output layer are not divided.

    Args:
        config: the model's `config.json`.
        parameters: number of all weights.
        whole_layers: as for `divide`.
    """
    text = config.get("text_config") or config
    tables = 1 if text.get("tie_word_embeddings") else 2
    embedding = tables * int(text.get("vocab_size") or 0) * int(text.get("hidden_size") or 0)
    whole = min(embedding / max(parameters, 1), 1.0)
    layers = int(text.get("num_hidden_layers") or 0) if whole_layers else 0
    divided = -(-layers // ranks) / layers if layers else 1 / ranks
    return 1 - (1 - whole) * (1 - divided)  # so that a single rank holds exactly 1


def layers_of_rank(
    layers: Sequence[LayerShape], ranks: int, whole_layers: bool = False
) -> list[LayerShape]:
    """Estimate the shapes of the KV caches of one rank, that of the most layers.

    Args:
        layers: the shapes of all layers of the whole model.
        whole_layers: as for `divide`.
    """
    if whole_layers:
        return list(layers[: -(-len(layers) // ranks)])
    return [
        layer if layer.values_in_keys else layer._replace(heads=max(layer.heads // ranks, 1))
        for layer in layers
    ]


def _check_heads(whole: Adapter, ranks: int, name: str) -> None:
    """Raise `UnsupportedModelError` unless the heads of every layer can be divided.

    Latent entries are the same for all heads, so every rank keeps them whole. Where there are more
    ranks than heads, mlx-lm may keep each head on several ranks.
    """
    found = [(a.layer, "query", a.heads) for a in whole.attentions]
    found += [
        (i, "key/value", layer.heads)
        for i, layer in enumerate(whole.layers)
        if not layer.values_in_keys and (ranks < layer.heads or ranks % layer.heads)
    ]
    for layer, kind, heads in found:
        if heads % ranks:
            fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            raise UnsupportedModelError(
                f"{name}: layer {layer} has {heads} {kind} heads, which cannot be divided among "
                f"{ranks} ranks equally; {fitting or 'no number of'} ranks would fit"
            )


def _check_share(whole: Adapter, mine: Adapter, ranks: int, name: str) -> None:
    """Raise `UnsupportedModelError` unless mlx-lm divided the KV heads of every layer."""
    for i, (before, after) in enumerate(zip(whole.layers, mine.layers, strict=True)):
        kept = before.heads if before.values_in_keys else max(before.heads // ranks, 1)
        if after.heads != kept:
            raise UnsupportedModelError(
                f"{name}: mlx-lm keeps {after.heads} of {before.heads} key/value heads of layer "
                f"{i} on each of {ranks} ranks, where {kept} were expected"
            )
