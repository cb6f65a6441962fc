"""Both sides of the long rows generate what they are asked for, from the same place each time."""

from __future__ import annotations

from sgl_mlx.benchmarks.micro import long_context
from sgl_mlx.benchmarks.micro.long_context import WITH_KERNELS, WITHOUT_KERNELS, measure
from sgl_mlx.metal_kernels.mode import mode


def test_a_row_is_measured_at_every_context() -> None:
    pairs = list(measure(None, [40, 70], layers=1, repeats=2, new_tokens=4))
    assert [pair.name for pair in pairs] == [f"decode B=1, {n} tokens before" for n in (40, 70)]
    assert all(min(*pair.ours, *pair.theirs) > 0 for pair in pairs)
    bar = WITHOUT_KERNELS if mode() == "off" else WITH_KERNELS
    assert {pair.bar for pair in pairs} == {bar}


def test_opening_an_epoch_is_timed() -> None:
    short = long_context.opening_milliseconds(tokens=64, layers=2)
    assert 0 < short < long_context.opening_milliseconds(tokens=1 << 17, layers=2)
