"""Division of a model's layers among ranks, by mlx-lm's own `pipeline` (pipeline parallelism).

Every rank keeps some consecutive layers whole, and their KV: the last rank the first layers, rank 0
the last ones. Hidden states are sent from rank to rank within the model's forward pass, and those
after the last layer to all ranks. Embeddings and the output layer are whole on every rank.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.build import model_classes


def can_pipeline(model: nn.Module) -> bool:
    """Return True if mlx-lm can divide a model's layers among ranks."""
    return callable(getattr(getattr(model, "model", None), "pipeline", None))


def pipeline(
    model: nn.Module, config: dict[str, Any], group: mx.distributed.Group, name: str
) -> None:
    """Keep a rank's layers of a model, in place and lazily.

    Args:
        model: as for `shards.divide`; `can_pipeline` returned True for it.
        config: the model's configuration.
        name: the model, for errors.

    Raises:
        UnsupportedModelError: there are fewer layers than ranks, or a rank would have no layer of a
            kind that another rank has. Rank 0 plans for all ranks by its own kinds of layers.
    """
    model_class, args_class = model_classes(config)
    whole = adapter_for(model_class(args_class.from_dict(config)))  # without computing weights
    trunk: Any = model.model
    try:
        trunk.pipeline(group)
        mine = adapter_for(model)
    except (ValueError, IndexError, AttributeError, TypeError, UnsupportedModelError) as error:
        raise UnsupportedModelError(
            f"{name}: its layers cannot be divided among {group.size()} ranks: {error}"
        ) from error
    lacking = _kinds(whole) - _kinds(mine)
    if lacking or mine.ragged != whole.ragged:
        what = " and ".join(sorted(lacking)) or "layers that run in one batch"
        raise UnsupportedModelError(
            f"{name}: rank {group.rank()} of {group.size()} would have no {what}, unlike others; "
            "use fewer ranks"
        )


def _kinds(adapter: Adapter) -> set[str]:
    """Name the kinds of layers that a model has."""
    windowed = {layer.window is not None for layer in adapter.layers}
    found = {"layers with recurrent state": bool(adapter.states)}
    found["layers of full attention"] = False in windowed
    found["layers with a sliding window"] = True in windowed
    return {kind for kind, there in found.items() if there}
