"""Both sides of the rows of recurrent layers run the steps that the rows name."""

from __future__ import annotations

from types import ModuleType

import pytest

from sgl_mlx.benchmarks.micro import recurrent
from sgl_mlx.benchmarks.micro.recurrent import LAYERS, RULE, RecurrentBench, milliseconds


def test_every_layer_is_measured_at_every_step(
    cpu_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "STEPS", ((1, 1), (2, 1), (1, 5)))
    monkeypatch.setattr(recurrent, "_LEAST_SECONDS", 0.0)
    pairs = list(RecurrentBench(cpu_kernels, repeats=1).pairs())
    steps = ("decode B=1", "decode B=2", "prefill 5")
    assert [p.name for p in pairs] == [f"{name}, {s}" for name in (RULE, *LAYERS) for s in steps]
    assert all(min(*p.ours, *p.theirs) > 0 for p in pairs)
    assert milliseconds(pairs[0]) == 1000 / max(pairs[0].ours)
