"""Both sides of the rows of recurrent layers run the steps that the rows name."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from sgl_mlx.benchmarks.micro import random_hybrid, recurrent
from sgl_mlx.benchmarks.micro.engine import EngineBench
from sgl_mlx.benchmarks.micro.recurrent import LAYERS, RULE, RecurrentBench, milliseconds
from sgl_mlx.runtime.engine import Engine


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


def test_the_random_hybrid_runs_ragged_and_both_sides_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = {"hidden_size": 64, "intermediate_size": 64, "linear_num_value_heads": 2}
    narrow |= {"linear_num_key_heads": 2, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
    monkeypatch.setattr(random_hybrid, "CONFIG", random_hybrid.CONFIG | narrow)
    with Engine(str(random_hybrid.write(tmp_path)), max_total_tokens=1000) as engine:
        assert engine.get_server_info()["attention_path"] == "ragged"
        pairs = list(EngineBench(engine, repeats=1, scale=0.05).decodes([1, 3]))
    assert [p.name for p in pairs] == ["decode B=1", "decode B=3"]
    assert all(min(*p.ours, *p.theirs) > 0 for p in pairs)
