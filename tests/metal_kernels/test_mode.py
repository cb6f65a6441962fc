"""`SGL_MLX_KERNELS` on a machine with and without Metal."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import mode as mode_module
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS, CutOvers
from sgl_mlx.metal_kernels.mode import VARIABLE, cut_overs, mode, open_kernels
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tune import Tuning

CASE = Case("extend", 4, 2, 64, mx.float16)


@pytest.mark.parametrize(("value", "meant"), [("off", "off"), ("force", "force"), ("", "auto")])
def test_the_environment_says_which(
    monkeypatch: pytest.MonkeyPatch, value: str, meant: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert mode() == meant


def test_another_word_is_refused_with_those_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(KernelError, match=r"'yes'.*off, auto, force"):
        mode()


def test_without_metal_there_are_none_and_force_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert open_kernels("auto") is None
    with pytest.raises(KernelError, match="no Metal"):
        open_kernels("force")


def test_with_metal_they_are_opened_unless_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert open_kernels("auto") is not None
    assert open_kernels("off") is None


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = []

    class Counted:
        def __init__(self, *_: object) -> None:
            sweeps.append(self)

        def run(self) -> CutOvers:
            return CutOvers(((0, 16),))

    monkeypatch.setattr(mode_module, "Sweep", Counted)
    tuning = Tuning(tmp_path)
    assert (
        cut_overs(CASE, "auto", tuning) == cut_overs(CASE, "auto", tuning) == CutOvers(((0, 16),))
    )
    assert len(sweeps) == 1
    assert cut_overs(CASE, "force", tuning) is ALWAYS_OURS


def test_a_sweep_that_fails_leaves_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such function")

    monkeypatch.setattr(mode_module, "Sweep", refuse)
    assert cut_overs(CASE, "auto", Tuning(tmp_path)) == CutOvers()
    assert "no such function" in caplog.text
