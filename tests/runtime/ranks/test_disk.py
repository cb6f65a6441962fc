"""A disk cache over several ranks: every rank keeps its part, and what one lacks is computed."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from tests.runtime.ranks.disk import LENGTHS, answers
from tests.runtime.ranks.launcher import Launched, lines, python
from tests.runtime.ranks.toys import write_toy

BLOCKS = sum(length // 64 for length in LENGTHS)


def test_what_every_rank_kept_comes_back(tmp_path: Path) -> None:
    model = write_toy(tmp_path / "model", "qwen3_5")  # snapshots of recurrent layers, and blocks
    file, cache = tmp_path / "answers", tmp_path / "cache"
    command = python("tests.runtime.ranks.disk", str(file), str(model), str(cache))
    with Launched(tmp_path / "run", command) as ranks:
        assert ranks.codes() == [0, 0], ranks.output(0, "err") + ranks.output(1, "err")
    mx.disable_compile()
    try:
        alone = answers(str(model), None)["tokens"]
    finally:
        mx.enable_compile()
    filled, used, damaged, again = lines(file.read_text())
    assert [found["tokens"] for found in (filled, used, damaged, again)] == [alone] * 4
    assert used["restored"] > filled["restored"] > 0
    assert damaged["restored"] < used["restored"]  # the second round finds what the first wrote
    assert again["restored"] == used["restored"]
    parts = [{f.name for f in part.glob("*.safetensors")} for part in sorted(cache.iterdir())]
    assert len(parts) == 2
    assert parts[1] <= parts[0]  # snapshots that nobody asked for again are on rank 0 alone
    assert len(parts[1]) >= BLOCKS
