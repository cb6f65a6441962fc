"""The goldens of Qwen's models, loaded from folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.models.vision.qwen.model import QwenVision
from tests.models.vision.conftest import read_golden, write_golden

Toys = Callable[[str], LoadedModel]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Each golden's model, loaded from a folder in float32."""

    @cache
    def open_toy(name: str) -> LoadedModel:
        folder = write_golden(tmp_path_factory.mktemp("goldens") / name, read_golden(name))
        return load(folder, dtype="float32")

    return open_toy


def vision(toys: Toys, name: str) -> QwenVision:
    found = toys(name).vision
    assert isinstance(found, QwenVision)
    return found
