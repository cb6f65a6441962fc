"""The kernels under the name that those for Metal have in their tests."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def kernels(cpu_kernels: ModuleType) -> ModuleType:
    return cpu_kernels
