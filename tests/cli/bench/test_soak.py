"""`sgl-mlx bench soak`: a short soak of a toy finds nothing wrong, and says so as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.cli.bench.test_serve_bench import model

__all__ = ["model"]

Sgl = Callable[..., Result]
SHORT = ["--slots", "6000", "--longest", "40", "--interval", "0.5", "--clients", "4"]


def test_a_short_soak_of_a_toy_finds_nothing_wrong(sgl: Sgl, model: str, tmp_path: Path) -> None:
    disk = ["--disk-cache", str(tmp_path)]
    done = sgl("bench", "soak", "--model", model, "--minutes", "0.06", *SHORT, *disk, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["errors_by_kind"] == {}
    assert report["requests"] == sum(row["requests"] for row in report["kinds"].values()) > 20
    assert report["left"]["leaked_slots"] == report["left"]["slots_after_flush"] == 0
    assert report["memory"]["end_rss"] > 0


def test_errors_are_printed_and_end_in_code_1(sgl: Sgl, model: str) -> None:
    too_long = ["--longest", "2000"]  # longer than the toy's context, so requests are refused
    done = sgl("bench", "soak", "--model", model, "--minutes", "0.03", *SHORT, *too_long)
    assert done.exit_code == 1
    assert "status 400 for 200" in done.stdout
    assert "requests, times in seconds" in done.stdout
