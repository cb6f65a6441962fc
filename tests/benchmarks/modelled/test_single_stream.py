"""One row's modelled time follows from counted copies, and stays near mlx-lm's."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from click.testing import CliRunner

from sgl_mlx.benchmarks.modelled.kernel_model import CHIPS
from sgl_mlx.benchmarks.modelled.single_stream import CONTEXTS, copies, streams
from sgl_mlx.cli.commands import main


@pytest.mark.parametrize("chip", ["m2-ultra", "m3-max", "m1"])
def test_one_row_is_nearly_as_fast_as_mlx_lm(chip: str) -> None:
    found = list(streams(CHIPS[chip]))
    assert [row.context for row in found] == [1024, 8192, 32768]
    for row in found:
        assert 0 < row.slower <= row.bar == CONTEXTS[row.context]


def test_a_stream_is_copied_when_it_starts_and_then_every_few_epochs() -> None:
    assert copies(8192, 512) == [8192, 8256, 8512]
    assert copies(64, 128) == [64, 128]
    assert all(b - a >= 64 for a, b in pairwise(copies(500, 4096)))
    assert len(copies(2000, 4096)) <= 2 + 4096 // 256


def test_the_command_says_that_it_models() -> None:
    result = CliRunner().invoke(main, ["bench", "project", "--single-stream", "--chip", "m2-ultra"])
    assert result.exit_code == 0, result.output
    *lines, last = result.output.strip().splitlines()
    assert all(line.startswith("modelled") for line in lines)
    document = json.loads(last)
    assert document["modelled"] is True
    assert [row["context"] for row in document["rows"]] == list(CONTEXTS)
