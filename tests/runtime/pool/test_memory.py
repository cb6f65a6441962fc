"""How large a pool may be, by its arithmetic."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.memory import copied_slots, pool_slots

LAYERS = [LayerShape(2, 16, 16)] * 4
EACH = 4 * 2 * 32 * 2
"""Bytes of a slot: layers, heads, key and value, half precision."""


def slots(wanted: int | None, context: int, available: int) -> int:
    return pool_slots(wanted, context, LAYERS, mx.float16, available)


def fitting(count: int) -> int:
    """So many bytes available that `count` slots are 60 % of them."""
    return -(-count * EACH * 10 // 6) + 10


def test_a_pool_that_fits_is_as_large_as_wanted() -> None:
    assert slots(5000, 2048, fitting(5000)) == 5000
    assert slots(12, 2048, fitting(5000)) == 12


def test_by_default_the_pool_holds_what_suffices_and_no_more() -> None:
    assert slots(None, 2048, 2**40) == 32768
    assert slots(None, 40_000, 2**40) == 80_000


def test_by_default_a_small_machine_gets_the_pool_that_fits() -> None:
    assert slots(None, 500, fitting(3000)) == 3000


@given(
    available=st.integers(2_000 * EACH, 100_000 * EACH),
    context=st.integers(1, 60_000),
    kv_bits=st.sampled_from([None, 8]),
    ragged=st.booleans(),
)
def test_by_default_the_longest_sequence_can_be_copied_beside_the_pool(
    available: int, context: int, kv_bits: int | None, ragged: bool
) -> None:
    copies = 1.3 if ragged else 2 / len(LAYERS)
    each = KVPool.bytes_per_slot(LAYERS, mx.float16, kv_bits)

    def fits(slots: int) -> bool:
        copied = min(slots, context) * copies * EACH
        return slots * each <= 0.6 * available and slots * each + copied <= 0.8 * available

    got = pool_slots(None, context, LAYERS, mx.float16, available, kv_bits, ragged)
    assert fits(got) or got == 1000
    assert not fits(got + 2) or got == max(2 * context, 32768)


def test_a_pool_too_large_for_the_machine_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(MemoryLimitError) as error:
        slots(4_000_000, 2048, 2**30)
    message = str(error.value)
    most = int(2**30 * 0.6) // EACH
    assert f"4000000 x {EACH} bytes = {4_000_000 * EACH / 2**30:.2f} GiB" in message
    assert "0.60 GiB (60% of 1.00 GiB available)" in message
    assert f"at most {most} tokens (max_total_tokens)" in message


def test_eight_bits_hold_more_tokens_in_the_same_memory() -> None:
    room = fitting(3000)
    quantized = pool_slots(None, 500, LAYERS, mx.float16, room, kv_bits=8)
    assert quantized == int(room * 0.6) // (4 * 2 * 2 * (16 + 2))
    with pytest.raises(MemoryLimitError, match="kv_bits=8 makes room"):
        pool_slots(4000, 2048, LAYERS, mx.float16, room)
    with pytest.raises(MemoryLimitError) as error:
        pool_slots(40_000, 2048, LAYERS, mx.float16, room, kv_bits=8)
    assert "kv_bits=8" not in str(error.value)


def test_a_machine_without_room_for_a_thousand_tokens_is_told_so() -> None:
    with pytest.raises(MemoryLimitError, match="a KV pool of 1000 tokens does not fit"):
        slots(None, 2048, fitting(999) - 20)
    assert slots(500, 2048, fitting(999) - 20) == 500  # unless less is asked for


def test_a_copy_of_what_is_decoded_fits_beside_the_pool() -> None:
    slots = 10_000
    available = fitting(slots)
    copied = copied_slots(slots, LAYERS, mx.float16, available)
    left = available - slots * EACH
    assert 0.45 * left < 1.3 * copied * EACH <= 0.5 * left
    quantized = copied_slots(slots, LAYERS, mx.float16, available, kv_bits=8)
    assert quantized > copied  # the pool leaves more, and copies are as large as before
    assert copied_slots(slots, LAYERS, mx.float16, slots * EACH) == 1
    dense = copied_slots(slots, LAYERS, mx.float16, available, ragged=False)
    assert dense == pytest.approx(copied * 1.3 / 2 * len(LAYERS), rel=1e-3)  # a layer at a time
