"""The tables of a kernel epoch are made once for all layers of a step, or once for all steps."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels import ops
from sgl_mlx.metal_kernels.build import Kernels as Compiled
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.inputs import DecodeInputs
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.kernels import KernelEpoch, Kernels
from sgl_mlx.runtime.pool.kv import KVPool
from tests.runtime import steps

LAYERS, STEPS = 6, 4


class Launches:
    """Kernels that compute nothing and keep the arrays of their launches by input name."""

    def __init__(self) -> None:
        self.seen: dict[str, list[mx.array]] = {}
        self._kernels = Compiled(self._make)

    def takes(self, _: DecodeInputs) -> bool:
        return True

    def decode(self, inputs: DecodeInputs) -> mx.array:
        return ops.decode_attention(inputs, self._kernels)

    def _make(self, name: str, input_names: list[str], **_: Any) -> Any:
        def launch(inputs: list[mx.array], output_shapes: Any, output_dtypes: Any, **_: Any) -> Any:
            for key, array in zip(input_names, inputs, strict=True):
                self.seen.setdefault(key, []).append(array)
            return [mx.zeros(s, t) for s, t in zip(output_shapes, output_dtypes, strict=True)]

        return launch


def no_plain_epoch() -> Epoch:
    raise AssertionError("every layer is for the kernels")


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_tables_are_made_once(softcap: float | None) -> None:
    pool = KVPool([LayerShape(2, 64, 64)] * LAYERS, 90, mx.float32)
    kernels = Launches()
    rows = [steps.row("a", tuple(range(1, 60)), 1, (70, 71, 72, 73))]
    epoch = KernelEpoch(
        pool, rows, STEPS, cast("Kernels", kernels), range(LAYERS), CutOvers(), no_plain_epoch
    )
    for _ in range(STEPS):
        epoch.begin_step()
        for layer in range(LAYERS):
            new = mx.zeros((1, 2, 64))
            epoch.store(layer, new, new)
            epoch.attend(layer, mx.zeros((1, 4, 64)), AttentionOptions(0.5, softcap=softcap))
    assert len({id(x) for x in kernels.seen["ints"]}) == STEPS
    assert len({id(x) for x in kernels.seen["reals"]}) == 1
    columns = [x.tolist()[0] for x in kernels.seen["ints"]]
    assert sorted(set(columns)) == [1, 2, 3, 4]
    assert kernels.seen["reals"][0].tolist()[:2] == pytest.approx([0.5, softcap or 0.0])
