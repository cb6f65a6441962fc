"""`sgl-mlx bench overhead`: the same requests over HTTP and in process."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from tests.cli.bench.test_serve_bench import model

__all__ = ["model"]

Sgl = Callable[..., Result]


@pytest.mark.parametrize("long", [0, 3000])
def test_it_compares_the_server_with_its_engine(sgl: Sgl, model: str, long: int) -> None:
    sizes = ["--at", "1", "--at", "3", "--tokens", "4", "--repeats", "2"]
    done = sgl("bench", "overhead", "--model", model, *sizes, "--long-prompt", str(long))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert [(row["at_once"], row["pairs"]) for row in document["rows"]] == [(1, 2), (3, 2)]
    for row in document["rows"]:
        assert row["speed_ratio"] > 0
        assert 0 < row["loop_share"] < 1
        assert row["cpu_ratio"] > 0
    assert ("longest_loop_ms" in document) == bool(long)
    if long:
        longest = document["longest_loop_ms"]
        assert 0 < longest["cpu"] <= longest["wall"]
    assert "over HTTP, against in process" in done.stdout
