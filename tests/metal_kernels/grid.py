"""The grid that the kernels are proven over, and the part of it that is in every test run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import mlx.core as mx
import pytest
from _pytest.mark import ParameterSet

from sgl_mlx.metal_kernels.shapes import WIDTHS
from tests.metal_kernels.cases import NAMES, Case

GROUPS = (1, 3, 4, 8)
VARIANTS = {
    "scattered": Case(),
    "contiguous": Case(scattered=False, loud=True),
    "window": Case(window=21),
    "capped": Case(softcap=3.0, sinks=True),
    "quantized": Case(quantized=True, window=45, sinks=True, loud=True),
}


def _points() -> Iterator[ParameterSet]:
    """Every point as a parameter; marked `whole_grid` unless every run takes it.

    Those taken have each width with each dtype, twice, under varying groups and variants.
    """
    for i, ((dim, value_dim), dtype) in enumerate(product(WIDTHS, NAMES)):
        for (g, group), (v, name) in product(enumerate(GROUPS), enumerate(VARIANTS)):
            case = replace(VARIANTS[name], dim=dim, dtype=dtype, group=group)
            if value_dim != dim:
                in_keys = dim == 576 and g % 2 == 0  # as the pool has MLA
                case = replace(case, value_dim=value_dim, values_in_keys=in_keys)
            if group < 4:  # two KV heads, so that mistaking one for the other shows
                case = replace(case, kv_heads=2)
            taken = (g, v) in ((i % 4, (i + i // 5) % 5), ((i + 2) % 4, (i + i // 5 + 2) % 5))
            marks = () if taken else (pytest.mark.whole_grid,)
            width = f"{dim}" if value_dim == dim else f"{dim}x{value_dim}"
            yield pytest.param(case, id=f"{width}-{NAMES[dtype]}-gqa{group}-{name}", marks=marks)


POINTS = list(_points())


def tile_keys(case: Case) -> int:
    """Count the keys in a tile of the extend and shared kernels; see `attention.h`."""
    bytes_per_row = case.dim * int(case.dtype.size)
    return 8 if bytes_per_row > 1152 else 16 if bytes_per_row > 512 else 32


SINGLE = Case(dtype=mx.float32)
