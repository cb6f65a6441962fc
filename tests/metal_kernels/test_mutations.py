"""The checks are worth what they catch: every fault in `mutations` must be caught, and by what.

The run ends with a table of faults and traps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import POOL, Kernels, read
from sgl_mlx.metal_kernels.plan import MIN_ELEMENTS, int_table
from sgl_mlx.metal_kernels.pool import PoolLayer
from tests.metal_kernels.cases import Case, assert_close, decode_call, extend_call
from tests.metal_kernels.emulator import Emulator, Trap, needs_compiler
from tests.metal_kernels.mutations import MUTATIONS, WRONG, Mutation

pytestmark = needs_compiler
PREFIX = "sgl_mlx_"
BASE = {"dim": 80, "dtype": mx.float32, "group": 3, "kv_heads": 2}


def _extend(**case: Any) -> Callable[[Kernels], None]:
    call = extend_call(Case(**BASE, **case), [(5, 3), (70, 40), (0, 12)])
    return lambda kernels: _compare(call, kernels)


def _decode(spans: list[tuple[int, int, int, int]], **case: Any) -> Callable[[Kernels], None]:
    call = decode_call(Case(**BASE, **case), [3, 70, 0, 33], 5, spans, tokens=2, width=7)
    return lambda kernels: _compare(call, kernels)


def _compare(call: Any, kernels: Kernels) -> None:
    assert_close(call.run(kernels), call.reference(), mx.float32)


def _flush(kernels: Kernels) -> None:
    keys, values = (mx.random.normal((5, 2, 80), key=mx.random.key(i)) for i in range(2))
    keys = mx.concatenate([keys[..., :1] - 9, keys[..., 1:]], axis=-1)  # the widest is negative
    pool = PoolLayer(*(mx.zeros((9, 2, 80), mx.int8), mx.zeros((9, 2, 80), mx.int8)),
                     *(mx.zeros((9, 2), mx.float16), mx.zeros((9, 2), mx.float16)))  # fmt: skip
    slots, previous = int_table([7, 2, 8, 3, 1]), mx.zeros(MIN_ELEMENTS, mx.int32)
    wanted, _ = reference.flush_pool(pool, keys, values, slots, previous)
    mx.eval(*(x for x in wanted if x is not None))
    ops.flush_pool(pool, keys, values, slots, previous, kernels)
    for name, got, want in zip(POOL, pool, wanted, strict=True):
        assert np.array_equal(np.array(got), np.array(want)), f"{name} differs"


SPANS = [(1, 4, 0, 50), (1, 3, 50, 40)]
WORK = {
    "extend": _extend(),
    "extend window": _extend(window=21),
    "extend capped": _extend(softcap=20.0, loud=True, sinks=True),
    "extend int8": _extend(quantized=True),
    "decode": _decode([]),
    "decode window": _decode([], window=21, sinks=True),
    "decode shared": _decode(SPANS),
    "decode shared window": _decode(SPANS, window=45),
    "flush": _flush,
}


def _kernels(change: Callable[[str, str], str]) -> Kernels:
    """Kernels whose texts go through `change(file, text)` first."""
    emulator = Emulator(writable=frozenset(POOL))

    def factory(name: str, source: str, header: str, **names: Any) -> Any:
        source = change(f"{name.removeprefix(PREFIX)}.metal", source)
        header = change("attention.h", header)
        return emulator.metal_kernel(name=name, source=source, header=header, **names)

    return Kernels(factory)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    yield rows
    terminal = request.config.get_terminal_writer()
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal.line()
        for row in rows:
            terminal.line("  {:<24} {:<42} {}".format(*row))


@pytest.mark.parametrize("work", WORK)
def test_without_a_fault_nothing_is_caught(work: str) -> None:
    WORK[work](_kernels(lambda file, text: text))


def test_every_kernel_has_its_faults() -> None:
    assert len(MUTATIONS) >= 20
    assert {m.file for m in MUTATIONS} == {
        *("attention.h", "extend_attention.metal", "decode_attention.metal"),
        *("shared_attention.metal", "merge_partials.metal", "flush_pool.metal"),
    }


@pytest.mark.parametrize("fault", MUTATIONS, ids=lambda m: f"{m.file}: {m.what}")
def test_a_fault_is_caught(fault: Mutation, table: list[tuple[str, ...]]) -> None:
    found = read(fault.file).count(fault.old)
    assert found == 1, f"{fault.old!r} is {found} times in {fault.file}"
    caught = _caught_by(fault)
    table.append((fault.file, fault.what, caught))
    assert caught == fault.caught_by


def _caught_by(fault: Mutation) -> str:
    def change(file: str, text: str) -> str:
        return text.replace(fault.old, fault.new) if file == fault.file else text

    try:
        WORK[fault.work](_kernels(change))
    except Trap as trap:
        return trap.kind
    except AssertionError:
        return WRONG
    return "nothing"
