"""A session on our engine leaves the process as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sgl_mlx as sgl
from sgl_mlx.benchmarks.peers.ours import Ours, Steered
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from sgl_mlx.lang.backend import Backend
from sgl_mlx.testing import ScriptedBackend


@pytest.fixture(params=[None, ScriptedBackend("x")])
def former(request: pytest.FixtureRequest) -> Iterator[Backend | None]:
    """The default backend before a session."""
    kept = sgl.global_config.default_backend
    sgl.set_default_backend(request.param)
    yield sgl.global_config.default_backend
    sgl.set_default_backend(kept)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_default_backend_is_restored(
    toy_folder: Path, words: Words, former: Backend | None, error: type[BaseException] | None
) -> None:
    system = Ours({"model_path": str(toy_folder)})

    def use() -> None:
        with system.session(WORKLOADS["mmlu"], Size(0.01), words):
            assert isinstance(sgl.global_config.default_backend, Steered)
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert sgl.global_config.default_backend is former
