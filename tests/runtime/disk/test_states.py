"""Snapshots on disk: an engine goes on from states that another one has computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_mlx.runtime.engine import Engine
from tests.runtime.hybrids import HYBRIDS, PURE, Open, alone, greedy, text

KINDS = ["qwen3_next", "lfm2", "nemotron_h", "mamba"]


def stats(engine: Engine) -> dict[str, float]:
    return dict(engine.get_server_info()["stats"])


@pytest.mark.parametrize("kind", [*HYBRIDS, *PURE])
def test_another_engine_goes_on_from_the_states_of_the_first(
    kind: str, open_toy: Open, tmp_path: Path
) -> None:
    prompts = [text(i, 135 + 41 * i) for i in range(2)]
    first = open_toy(kind, disk_cache_dir=str(tmp_path))
    answers = greedy(first, prompts, 6)
    first.shutdown()
    again = open_toy(kind, disk_cache_dir=str(tmp_path))
    turns = [(*p, *a, 7, 8) for p, a in zip(prompts, answers, strict=True)]
    assert greedy(again, turns, 6) == [alone(kind, p, 6) for p in turns]
    assert stats(again)["restored_tokens"] == sum(len(p) + 5 for p in prompts)
    assert stats(again)["computed_tokens"] == 3 * len(prompts)
    assert stats(again)["disk_hits"] == len(prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_states_leave_a_small_pool_and_come_back(kind: str, open_toy: Open, tmp_path: Path) -> None:
    """Three prompts in turn, with slots for one; each is evicted by the next."""
    engine = open_toy(kind, disk_cache_dir=str(tmp_path), max_total_tokens=420, max_total_states=3)
    prompts = [text(10 + i, 180) for i in range(3)]
    expected = [alone(kind, p, 6) for p in prompts]
    for _ in range(3):
        for prompt, answer in zip(prompts, expected, strict=True):
            assert greedy(engine, [prompt], 6) == [answer]
            engine.get_server_info()
    assert stats(engine)["restored_tokens"] > 0
    assert stats(engine)["snapshots_evicted"] > 0


def test_a_damaged_snapshot_is_computed_again(open_toy: Open, tmp_path: Path) -> None:
    prompt = text(1, 200)
    first = open_toy("qwen3_next", disk_cache_dir=str(tmp_path))
    greedy(first, [prompt], 4)
    first.shutdown()
    for file in tmp_path.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    again = open_toy("qwen3_next", disk_cache_dir=str(tmp_path))
    assert greedy(again, [prompt], 4) == [alone("qwen3_next", prompt, 4)]
    assert stats(again)["restored_tokens"] == 0
    assert stats(again)["disk_broken_files"] > 0
