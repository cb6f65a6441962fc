"""The pool of keys and values."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.metal_kernels.pool import dequantize, quantize
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex

LAYERS = [LayerShape(2, 4, 3), LayerShape(1, 5, 0)]


def kv(count: int, start: int = 1) -> tuple[list[mx.array], list[mx.array]]:
    """Distinct numbers for `count` tokens of every layer."""
    keys, values = [], []
    for layer in LAYERS:
        keys.append(mx.arange(count * layer.heads * layer.key_dim) + start)
        values.append(-mx.arange(count * layer.heads * layer.value_dim) - start)
        keys[-1] = keys[-1].reshape(count, layer.heads, layer.key_dim).astype(mx.float32)
        values[-1] = values[-1].reshape(count, layer.heads, layer.value_dim).astype(mx.float32)
    return keys, values


@pytest.mark.parametrize("slots", [[3, 4, 5], [9, 2, 6], [7]], ids=["run", "scattered", "one"])
def test_what_was_written_is_read_back(slots: list[int]) -> None:
    pool = KVPool(LAYERS, 10, mx.float32)
    keys, values = kv(len(slots))
    pool.write(slots, keys, values)
    for layer in range(len(LAYERS)):
        found = pool.gather(layer, SlotIndex(slots))
        np.testing.assert_array_equal(np.array(found[0]), np.array(keys[layer]))
        np.testing.assert_array_equal(np.array(found[1]), np.array(values[layer]))


def test_a_write_touches_no_other_slot() -> None:
    pool = KVPool(LAYERS, 10, mx.float32)
    pool.write([1, 2, 3, 4], *kv(4))
    before = np.array(pool.keys[0].data)
    pool.write([2, 9], *kv(2, start=500))
    same = [i for i in range(11) if i not in (2, 9)]
    np.testing.assert_array_equal(np.array(pool.keys[0].data)[same], before[same])
    assert not np.array(pool.keys[0].data)[0].any()


def test_writing_nothing_is_allowed() -> None:
    pool = KVPool(LAYERS, 4, mx.float32)
    pool.write([], *kv(0))
    assert not np.array(pool.keys[0].data).any()


@pytest.mark.parametrize("slots", [[4, 5, 7], [5, 4, 3], [4, 6, 5, 7], [4, 4]])
def test_only_consecutive_ascending_slots_are_a_run(slots: list[int]) -> None:
    assert SlotIndex(slots).run is None
    assert SlotIndex([4, 5, 6]).run == (4, 7)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_what_a_slot_costs_is_what_is_allocated(dtype: mx.Dtype, bits: int | None) -> None:
    pool = KVPool(LAYERS, 10, dtype, bits)
    allocated = sum(a.nbytes for x in [*pool.keys, *pool.values] for a in x.arrays())
    assert allocated == 11 * KVPool.bytes_per_slot(LAYERS, dtype, bits)  # one is padding


def test_a_slot_costs_the_keys_and_values_of_every_layer() -> None:
    assert KVPool.bytes_per_slot(LAYERS, mx.float16) == 2 * (2 * (4 + 3) + 5)


SHAPES = {
    "SmolLM2-135M": [LayerShape(3, 64, 64)] * 30,
    "Llama-3-8B": [LayerShape(8, 128, 128)] * 32,
    "Qwen3-4B": [LayerShape(8, 128, 128)] * 36,
    "Gemma-3-4B": [LayerShape(4, 256, 256)] * 34,
    "LLaVA-1.5-7B": [LayerShape(32, 128, 128)] * 32,
}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("model", SHAPES)
def test_eight_bits_make_room_for_1_9_times_the_slots(model: str, dtype: mx.Dtype) -> None:
    plain = KVPool.bytes_per_slot(SHAPES[model], dtype)
    assert plain / KVPool.bytes_per_slot(SHAPES[model], dtype, 8) >= 1.9


# -- 8 bits ---------------------------------------------------------------------------------------

vectors = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=5, max_size=5),
    min_size=1,
    max_size=4,
)


@given(vectors, st.sampled_from([mx.float32, mx.bfloat16]))
def test_an_element_is_off_by_half_a_step_of_its_vector_at_most(
    found: list[list[float]], dtype: mx.Dtype
) -> None:
    x = mx.array(found, dtype)
    q, scales = quantize(x)
    assert (q.dtype, scales.dtype, scales.shape) == (mx.int8, mx.float16, x.shape[:-1])
    assert mx.abs(q.astype(mx.int32)).max() <= 127
    wide = np.array(x.astype(mx.float32), np.float64)
    step = np.abs(wide).max(axis=-1, keepdims=True) / 127
    error = np.abs(np.array(dequantize(q, scales, mx.float32)) - wide)
    # 0.07: the outermost may be clamped where float16 rounds the scale down; 4e-6: subnormal ones
    assert np.all(error <= step * (0.5 + 0.07) + 4e-6)


def test_a_zero_vector_has_scale_zero_and_comes_back_as_zero() -> None:
    q, scales = quantize(mx.zeros((2, 3, 4), mx.float16))
    assert not np.array(scales).any()
    assert not np.array(dequantize(q, scales, mx.float16)).any()


def test_a_vector_beyond_the_scale_is_clamped_not_lost() -> None:
    q, scales = quantize(mx.array([[3e38, -3e38, 0.0]]))
    assert q.tolist() == [[127, -127, 0]]
    assert scales.tolist() == [65504.0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("slots", [[3, 4, 5], [9, 2, 6]], ids=["run", "scattered"])
def test_what_was_written_in_8_bits_is_read_back_nearly(slots: list[int], dtype: mx.Dtype) -> None:
    pool = KVPool(LAYERS, 10, dtype, 8)
    keys, values = ([x.astype(dtype) for x in half] for half in kv(len(slots)))
    pool.write(slots, keys, values)
    for layer in range(len(LAYERS)):
        for found, right in zip(
            pool.gather(layer, SlotIndex(slots)), (keys[layer], values[layer]), strict=True
        ):
            assert (found.dtype, found.shape) == (dtype, right.shape)
            near = {"rtol": 0, "atol": 24 / 127}  # the largest number is 24
            np.testing.assert_allclose(
                *(np.array(x.astype(mx.float32)) for x in (found, right)), **near
            )
        assert not np.array(pool.keys[layer].data)[[0, 1, 7, 8, 10]].any()


def test_what_was_quantized_once_is_quantized_to_the_same_again() -> None:
    x = mx.random.normal((50, 3, 64), key=mx.random.key(1))
    once = dequantize(*quantize(x), mx.float32)
    np.testing.assert_array_equal(np.array(dequantize(*quantize(once), mx.float32)), np.array(once))


@pytest.mark.parametrize("bits", [None, 8])
def test_kernels_read_a_layer_as_the_pool_does(bits: int | None) -> None:
    pool = KVPool(LAYERS, 10, mx.float32, bits)
    pool.write([3, 7], *kv(2))
    layer = pool.layer(0)
    assert layer.quantized == (bits == 8)
    for found, right in zip(
        layer.gather(mx.array([3, 7]), mx.float32), pool.gather(0, SlotIndex([3, 7])), strict=True
    ):
        np.testing.assert_array_equal(np.array(found), np.array(right))
