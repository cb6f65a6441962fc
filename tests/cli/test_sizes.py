"""Sizes as people write them."""

from __future__ import annotations

import click
import pytest

from sgl_mlx.cli.sizes import byte_size


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("500", 500),
        ("500MB", 500_000_000),
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 3 << 29),
        ("4k", 4000),
        ("1T", 10**12),
    ],
)
def test_a_size_is_read_as_it_is_written(text: str, bytes_: int) -> None:
    assert byte_size(text) == bytes_


@pytest.mark.parametrize("text", ["", "GB", "2XB", "-1GB", "2GBs"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="500MB, 2GB"):
        byte_size(text)
