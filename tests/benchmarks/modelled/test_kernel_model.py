"""The model's counts are those of the kernels; everything it says is marked as modelled."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner

from sgl_mlx.benchmarks.modelled import kernel_counts as counts
from sgl_mlx.benchmarks.modelled.kernel_model import CHIPS, Case, gathered, model, ours
from sgl_mlx.cli.commands import main
from sgl_mlx.metal_kernels import ops
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow, SharedSpan
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from tests.metal_kernels.emulator import Emulator, needs_compiler

HEADS, KV_HEADS = 6, 2


@dataclass
class Seen:
    """The emulator's counts of a kernel's launches."""

    mmas: int
    read: Counter[str]
    written: int

    @classmethod
    def of(cls, emulator: Emulator, kernel: str) -> Seen:
        found = [x.counters for x in emulator.launches if kernel in x.msl.name]
        read = sum((Counter(x.bytes_read) for x in found), Counter())
        return cls(
            sum(x.mmas for x in found), read, sum(sum(x.bytes_written.values()) for x in found)
        )

    def keys(self, dim: int) -> int:
        """Reads of a float16 key, each of which has a value too."""
        keys, values = (
            sum(self.read[f"{where}_{what}"] for where in ("pool", "new", "tail"))
            for what in ("keys", "values")
        )
        assert keys == values
        return keys // (2 * dim)


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape).astype(mx.float16)


@needs_compiler
@pytest.mark.parametrize("dim", [64, 256, 512])
def test_k1_multiplies_and_reads_as_often_as_the_model_says(dim: int) -> None:
    plan = ExtendPlan([ExtendRow(range(1, 41), 13), ExtendRow([], 5), ExtendRow([3] * 31, 1)])
    emulator = Emulator()
    q, k = random(plan.tokens, HEADS, dim), random(plan.tokens, KV_HEADS, dim)
    pool = PoolLayer(random(50, KV_HEADS, dim), random(50, KV_HEADS, dim))
    kernels = Kernels(emulator.metal_kernel)
    mx.eval(ops.extend_attention(ExtendInputs(q, k, k, pool, plan, AttentionOptions(0.1)), kernels))
    seen = Seen.of(emulator, "extend_attention")
    assert seen.mmas == counts.extend_mmas(plan, HEADS, KV_HEADS, dim, element=2) > 0
    assert seen.keys(dim) == counts.extend_keys(plan, HEADS, KV_HEADS, dim)
    assert seen.written == q.nbytes
    assert len(emulator.launches) == 1


@needs_compiler
@pytest.mark.parametrize(("tokens", "dim"), [(1, 64), (3, 64), (1, 128), (1, 256), (3, 512)])
def test_k2_and_k3_multiply_read_and_write_as_often_as_the_model_says(
    tokens: int, dim: int
) -> None:
    spans = [SharedSpan(0, 5, 0, range(1, 571)), SharedSpan(1, 4, 570, range(600, 633))]
    own = [[5], [], range(2, 9), range(1, 520), [4]]
    plan = DecodePlan(own, spans, width=tokens, tokens=tokens)
    emulator = Emulator()
    tail, pool = random(5, tokens, KV_HEADS, dim), random(700, KV_HEADS, dim)
    q, kernels = random(5 * tokens, HEADS, dim), Kernels(emulator.metal_kernel)
    layer = PoolLayer(pool, random(700, KV_HEADS, dim))  # the same array twice would mean latents
    inputs = DecodeInputs(q, tail, tail, tokens, layer, plan, AttentionOptions(0.1))
    mx.eval(ops.decode_attention(inputs, kernels))
    k2, k3 = (Seen.of(emulator, f"{kernel}_attention") for kernel in ("decode", "shared"))
    assert k3.mmas == counts.shared_mmas(plan, HEADS, KV_HEADS, dim, element=2) > 0
    assert k3.keys(dim) == counts.shared_keys(plan, HEADS, KV_HEADS, dim)
    assert k2.keys(dim) == counts.own_keys(plan, tokens, HEADS, KV_HEADS, dim)
    assert k2.written + k3.written == 4 * counts.partial_elements(plan, HEADS, dim)
    assert len(emulator.launches) == 3


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
