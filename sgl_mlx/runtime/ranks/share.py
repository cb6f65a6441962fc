"""A rank's share of the model that all open engines run, with or without adapters."""

from __future__ import annotations

import mlx.core as mx

from sgl_mlx.errors import BackendError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import adapted, load_share
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.pool.wired import WiredWeights

_BASE = ("model_path", "dtype", "mmproj", "pipeline")
"""Options on which the share depends."""


class Share:
    """A rank's share of a model, loaded for the first engine and dropped after the last one.

    Args:
        group: all ranks.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self._users: dict[int, EngineConfig] = {}
        self._loaded: LoadedModel | None = None
        self._wired: WiredWeights | None = None

    def take(self, engine: int, config: EngineConfig) -> None:
        """Enter an engine among the users.

        Raises:
            BackendError: another engine that is open runs another model.
        """
        for other in self._users.values():
            if differing := [n for n in _BASE if getattr(config, n) != getattr(other, n)]:
                name = differing[0]
                raise BackendError(
                    "several ranks run one model at a time, with any number of adapters: "
                    f"{name}={getattr(config, name)!r} was asked for while an engine with "
                    f"{name}={getattr(other, name)!r} is open; shut that one down first"
                )
        self._users[engine] = config

    def load(self, engine: int) -> LoadedModel:
        """Return the share as a user's options want it, and load it if it is not loaded.

        Raises:
            ModelError, MemoryLimitError: see `models.load` and `models.lora`.
        """
        config = self._users[engine]
        if self._loaded is None:
            self._loaded = load_share(config, self._group)
            self._wired = WiredWeights(self._loaded.weight_bytes)
        return adapted(self._loaded, config, self._group)

    def drop(self, engine: int) -> None:
        """Remove a user. Safe to call twice."""
        self._users.pop(engine, None)
        if not self._users and self._wired is not None:
            self._wired.release()
            self._loaded = self._wired = None
