"""The model's counts are those of the kernels; everything it says is marked as modelled."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner

from sgl_mlx.benchmarks.kernel_model import (
    CHIPS,
    Case,
    extend_mmas,
    gathered,
    model,
    ours,
    shared_mmas,
)
from sgl_mlx.cli.commands import main
from sgl_mlx.metal_kernels import ops
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow, SharedSpan
from sgl_mlx.metal_kernels.pool import Options, PoolLayer
from tests.metal_kernels.emulator import Emulator, needs_compiler

HEADS, KV_HEADS = 6, 2


def mmas(emulator: Emulator, kernel: str) -> int:
    return sum(x.counters.mmas for x in emulator.launches if kernel in x.msl.name)


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape).astype(mx.float16)


@needs_compiler
@pytest.mark.parametrize("dim", [64, 256])
def test_k1_multiplies_as_often_as_the_model_says(dim: int) -> None:
    plan = ExtendPlan([ExtendRow(range(1, 41), 13), ExtendRow([], 5), ExtendRow([3] * 31, 1)])
    emulator = Emulator()
    q, k = random(plan.tokens, HEADS, dim), random(plan.tokens, KV_HEADS, dim)
    pool = PoolLayer(random(50, KV_HEADS, dim), random(50, KV_HEADS, dim))
    kernels = Kernels(emulator.metal_kernel)
    mx.eval(ops.extend_attention(q, k, k, pool, plan, Options(0.1), kernels))
    counted = mmas(emulator, "extend_attention")
    assert counted == extend_mmas(plan, HEADS, KV_HEADS, dim, element=2) > 0


@needs_compiler
def test_k3_multiplies_as_often_as_the_model_says() -> None:
    spans = [SharedSpan(0, 5, 0, range(1, 71)), SharedSpan(1, 4, 70, range(100, 133))]
    plan = DecodePlan([[5]] * 5, spans)
    emulator = Emulator()
    tail, pool = random(5, 1, KV_HEADS, 64), random(200, KV_HEADS, 64)
    q, kernels = random(5, HEADS, 64), Kernels(emulator.metal_kernel)
    layer = PoolLayer(pool, pool)
    mx.eval(ops.decode_attention(q, tail, tail, 1, layer, plan, Options(0.1), kernels))
    counted = mmas(emulator, "shared_attention")
    assert counted == shared_mmas(plan, HEADS, KV_HEADS, 64, element=2) > 0


def test_a_shared_prefix_is_read_once_a_tile_and_not_once_a_row() -> None:
    apart = Case(new=1, prefix=4096, rows=32, heads=32, kv_heads=8, dim=128)
    together = Case(**{**vars(apart), "shared": 4032})
    assert ours(together).bytes < ours(apart).bytes / 5  # four tiles of vectors, not 32 rows
    assert gathered(together).bytes == gathered(apart).bytes


def test_a_faster_chip_is_never_slower() -> None:
    slow, fast = model(CHIPS["m1"]), model(CHIPS["m2-ultra"])
    assert all(a.ours > b.ours for a, b in zip(slow, fast, strict=True))


def test_every_line_says_modelled(tmp_path: Path) -> None:
    picture = tmp_path / "model.svg"
    shown = CliRunner().invoke(main, ["bench", "kernels", "--chip", "m1", "--plot", str(picture)])
    *lines, last = shown.output.splitlines()
    assert lines
    assert all(line.startswith("modelled m1 ") for line in lines), shown.output
    assert all(row["modelled"] for row in json.loads(last)["rows"])
    assert "<svg" in picture.read_text()


def test_an_unknown_chip_is_refused_with_those_known() -> None:
    shown = CliRunner().invoke(main, ["bench", "kernels", "--chip", "m9"])
    assert shown.exit_code == 2
    assert "m2-ultra" in shown.output


def test_a_plot_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    wrong = str(tmp_path / "model.cake")
    shown = CliRunner().invoke(main, ["bench", "kernels", "--plot", wrong])
    assert shown.exit_code == 1
    assert "model.cake" in shown.output
