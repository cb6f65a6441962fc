"""Memory is counted before weights are read."""

from __future__ import annotations

import pytest

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.memory import available_bytes, check_fits

GIB = 2**30


def test_the_refusal_shows_the_arithmetic() -> None:
    expected = (
        "big does not fit: 2,000 M parameters as float32 take 8.00 GiB, usable are 7.20 GiB "
        "(90% of 8.00 GiB available); choose a smaller or a quantized model, or free memory"
    )
    with pytest.raises(MemoryLimitError) as caught:
        check_fits("big", 8 * GIB, 8 * GIB, "2,000 M parameters as float32")
    assert str(caught.value) == expected


def test_what_fits_with_room_for_the_rest_passes() -> None:
    check_fits("small", 7 * GIB, 8 * GIB, "weights")


def test_this_machine_has_memory() -> None:
    assert available_bytes() > 100 * 2**20
