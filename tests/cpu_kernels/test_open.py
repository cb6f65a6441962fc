"""On a Mac there are no CPU kernels, whatever is asked; nothing is read or compiled."""

from __future__ import annotations

import pytest

from sgl_mlx import machine
from sgl_mlx.cpu_kernels import build
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.mode import VARIABLE


@pytest.fixture(autouse=True)
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "system", lambda: "darwin")
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    monkeypatch.setattr(build, "_processor", lambda: pytest.fail("read /proc/cpuinfo"))


def test_none_are_opened_and_the_reason_is_told() -> None:
    assert open_cpu_kernels() is None
    assert build.why_not() == "the CPU kernels are for Linux"


def test_force_and_compiling_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="are for Linux"):
        build.compile_kernels()
    monkeypatch.setenv(VARIABLE, "force")
    with pytest.raises(KernelError, match="are for Linux"):
        open_cpu_kernels()
