"""Error that fast::exp2 brings, when it is as far off as Apple allows: measured in the emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.selftest import SLACK
from tests.conftest import SHOWN
from tests.metal_kernels.cases import Case, decode_call, extend_call
from tests.metal_kernels.emulator import Emulator, needs_compiler

FLOATS = Case(dtype=mx.float32, group=2)
CALLS = {
    "extend": extend_call(FLOATS, [(700, 20), (30, 9)]),
    "extend, loud": extend_call(Case(dtype=mx.float32, loud=True, softcap=20.0), [(300, 9)]),
    "decode": decode_call(FLOATS, [1500, 40], 3, chunk=512),
    "decode, shared": decode_call(FLOATS, [9, 40, 3], 3, [(0, 3, 0, 900)], chunk=128),
}
FAST = "fast::exp2"


def kernels(exact: bool) -> Kernels:
    emulator = Emulator()

    def factory(header: str, **names: Any) -> Any:
        assert header.count(FAST) == 2, "once in the code, once in its comment"
        header = header.replace(f"return {FAST}", "return precise::exp2") if exact else header
        return emulator.metal_kernel(header=header, **names)

    return Kernels(factory)


@needs_compiler
@pytest.mark.parametrize("name", CALLS)
def test_the_whole_error_that_apple_allows_is_less_than_a_third_of_what_a_result_may_be_off(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    call = CALLS[name]
    right = call.reference()
    exact, fast = (call.run(kernels(exact)) for exact in (True, False))
    errors = [float(mx.abs(out - right).max().item()) for out in (exact, fast)]
    told = f"{name:<16} off by {errors[0]:.1e} with exp2, {errors[1]:.1e} with fast::exp2"
    record_property(SHOWN, told)
    assert max(errors) < SLACK / 3
    assert not mx.array_equal(exact, fast), "or nothing was measured"
