"""The rows of a Mac's GPU, from facts put in."""

from __future__ import annotations

import re

import pytest

from sgl_mlx.cli.doctor import metal
from sgl_mlx.metal_kernels.mode import VARIABLE
from tests.darwin import GIB


def test_verdicts_are_counted_and_the_bad_ones_named() -> None:
    assert "kernels selftest" in metal.verdicts_row(None).detail
    good = dict.fromkeys(["extend(a)", "decode(a)"], True)
    assert metal.verdicts_row(good).detail == "all 2 tested agree with plain MLX"
    row = metal.verdicts_row({**good, "extend(b)": False})
    assert row.status == "warn"
    assert row.detail.startswith("1 of 3 differ from plain MLX and are not used: extend(b);")
    assert "doctor --report" in row.detail


def test_kernels_that_are_switched_off_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert metal.kernels().status == "warn"


@pytest.mark.parametrize(
    ("weights", "status"),
    [(None, "ok"), (10 * GIB, "ok"), (12 * GIB, "warn"), (15 * GIB, "fail")],
)
def test_weights_beyond_the_wired_limit_come_with_a_remedy(
    weights: int | None, status: str
) -> None:
    row = metal.wired_row(11 * GIB, weights, 16 * GIB)
    assert row.status == status
    asked = re.search(r"iogpu\.wired_limit_mb=(\d+)", row.detail)
    assert (asked is not None) is (status == "warn")
    if asked:
        assert weights is not None
        assert weights <= int(asked[1]) * 2**20 < 16 * GIB


def test_a_limit_that_was_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal, "_sysctl", lambda name: "12288")
    assert "12.0 GiB" in metal.wired_limit("nowhere").detail
    assert metal.wired_limit("nowhere").status == "ok"
