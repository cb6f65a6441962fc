"""Weights are wired where that matters, on simulated devices; nothing else ever is."""

from __future__ import annotations

import mlx.core as mx
import pytest

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool import wired
from sgl_mlx.runtime.pool.wired import VARIABLE, WiredWeights, wiring
from tests.runtime.conftest import MakeEngine

GIB = 2**30
MAX = {"max_recommended_working_set_size": 48 * GIB, "memory_size": 64 * GIB}


class Limit:
    """MLX's limit, as on a system that allows `most` bytes; `history` is what was ever set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 48 * GIB) -> None:
        self.now = 0
        self.most = most
        self.history: list[int] = []
        monkeypatch.setattr(mx, "set_wired_limit", self)

    def __call__(self, limit: int) -> int:
        if limit > self.most:
            raise RuntimeError("[metal::set_wired_limit] larger than the system's")
        before, self.now = self.now, limit
        self.history.append(limit)
        return before


def test_small_weights_are_left_alone_and_large_ones_wired_up_to_what_is_recommended() -> None:
    assert [wiring(n * GIB, MAX).bytes // GIB for n in (1, 12, 13, 40, 100)] == [0, 0, 13, 40, 48]


def test_the_reason_has_the_numbers_and_the_switch() -> None:
    assert wiring(24 * GIB, MAX).why == (
        "weights of 24.0 GiB, 50% of the recommended 48.0 GiB: wired "
        "(SGL_MLX_WIRED=off leaves them unwired)"
    )
    assert "up to 25% wiring brings nothing" in wiring(GIB, MAX).why


def test_without_a_gpu_nothing_is_wired(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch)
    WiredWeights(40 * GIB, {"device_name": "cpu"}).release()
    assert limit.history == []


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert wiring(40 * GIB, MAX).bytes == 0
    monkeypatch.setenv(VARIABLE, "on")
    assert wiring(GIB, MAX).bytes == GIB
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(InvalidParamsError, match="it must be auto, on, off"):
        wiring(GIB, MAX)


def test_engines_share_one_limit_and_give_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch)
    first, second = (WiredWeights(n * GIB, MAX) for n in (20, 16))
    assert limit.now == 36 * GIB
    first.release()
    first.release()
    assert limit.now == 16 * GIB
    second.release()
    assert limit.now == 0


def test_a_system_that_allows_less_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch, most=10 * GIB)
    weights = WiredWeights(20 * GIB, MAX)
    assert weights.wiring.bytes == 0
    assert "larger than the system's" in weights.wiring.why
    weights.release()
    assert limit.now == 0


def test_an_engine_wires_its_weights_until_it_is_shut_down(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Limit(monkeypatch)
    monkeypatch.setenv(VARIABLE, "on")
    monkeypatch.setattr(wired.mx, "device_info", lambda: MAX)
    engine: Engine = make_engine()
    weights = engine._loop.model.wired.wiring.bytes
    assert 0 < weights < limit.now + 1 == weights + 1
    engine.shutdown()
    assert limit.now == 0
