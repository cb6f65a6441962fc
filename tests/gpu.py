"""The tests that compute on a GPU, marked `gpu`: what to run first on a new Mac.

`make test-gpu` runs them alone, one after the other, with `--small-pools`: a hosted Mac has little
memory, and several engines at a time would swap there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COMPUTING = (
    "tests/models/test_adapter.py",
    "tests/models/test_architectures.py",
    "tests/models/test_loader.py",
    "tests/runtime/attention",
    "tests/runtime/pool",
    "tests/runtime/test_engine.py",
    "tests/runtime/test_logprobs.py",
    "tests/runtime/test_parity.py",
    "tests/runtime/test_programs.py",
    "tests/runtime/test_sampler.py",
    "tests/runtime/vision",
    "tests/metal_kernels/test_reference.py",
    "tests/cli/test_real_model.py",
    "tests/test_readme.py",
)
SMALL = 4096
"""Slots that a pool begins with when it is given no size; 32,768 without `--small-pools`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--small-pools", action="store_true", help=f"let pools begin with {SMALL} slots"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    computing = tuple(ROOT / name for name in COMPUTING)
    for item in items:
        if any(item.path.is_relative_to(place) for place in computing):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _small_pools(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--small-pools") and request.node.get_closest_marker("gpu"):
        from sgl_mlx.runtime.pool import capacity  # imports mlx, which must come after the BLAS

        request.getfixturevalue("monkeypatch").setattr(capacity, "ENOUGH", SMALL)
