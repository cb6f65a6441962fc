"""The checks are worth what they catch: every fault in `mutations` must be caught, and by what.

They run as on a device that multiplies in TF32. The run ends with a table of faults and traps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_mlx.metal_kernels.build import Kernels, read
from tests.conftest import SHOWN
from tests.metal_kernels.emulator import Emulator, Trap, needs_compiler
from tests.metal_kernels.mutations import MUTATIONS, WRONG, Mutation
from tests.metal_kernels.tf32 import multiply_in_tf32
from tests.metal_kernels.work import WORK

pytestmark = needs_compiler
PREFIX = "sgl_mlx_"


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_in_tf32(monkeypatch)


def _kernels(change: Callable[[str, str], str]) -> Kernels:
    """Kernels whose texts go through `change(file, text)` first."""
    emulator = Emulator()

    def factory(name: str, source: str, header: str, **names: Any) -> Any:
        source = change(f"{name.removeprefix(PREFIX)}.metal", source)
        header = change("attention.h", header)
        return emulator.metal_kernel(name=name, source=source, header=header, **names)

    return Kernels(factory)


@pytest.mark.parametrize("work", WORK)
def test_without_a_fault_nothing_is_caught(work: str) -> None:
    WORK[work](_kernels(lambda file, text: text))


def test_every_kernel_has_its_faults() -> None:
    assert len(MUTATIONS) >= 20
    assert {m.file for m in MUTATIONS} == {
        *("attention.h", "extend_attention.metal", "decode_attention.metal"),
        *("shared_attention.metal", "merge_partials.metal"),
    }


@pytest.mark.parametrize("fault", MUTATIONS, ids=lambda m: f"{m.file}: {m.what}")
def test_a_fault_is_caught(fault: Mutation, record_property: Callable[[str, object], None]) -> None:
    found = read(fault.file).count(fault.old)
    assert found == 1, f"{fault.old!r} is {found} times in {fault.file}"
    caught = _caught_by(fault)
    record_property(SHOWN, f"{fault.file:<24} {fault.what:<42} {caught}")
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
