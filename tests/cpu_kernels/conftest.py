"""The compiled kernels; `make setup` compiles them."""

from __future__ import annotations

from types import ModuleType

import pytest

from sgl_mlx.cpu_kernels import build


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    if reason := build.why_not():
        pytest.skip(reason)
    found = build.load()
    assert found is not None
    return found
