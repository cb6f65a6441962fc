"""`sgl-mlx bench memory` shows what an engine would take on Macs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sgl_mlx.cli import main


@pytest.mark.parametrize("more", [[], ["--kv-bits", "8"], ["--json"]])
def test_it_ends_with_one_json_line(more: list[str]) -> None:
    shown = CliRunner().invoke(main, ["bench", "memory", *more])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.output.splitlines()[-1])
    assert document["modelled"] is True
    assert [mac["memory"] >> 30 for mac in document["macs"]] == [8, 16, 32, 64, 192, 512]
    assert all(mac["refusal"] or mac["left"] >= 2 << 30 for mac in document["macs"])
