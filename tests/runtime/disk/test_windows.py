"""Windows on disk: an engine goes on from prefixes of which another one kept the window alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_mlx.runtime.disk.block_file import kind_of
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool import window_memory
from tests.runtime import hybrids
from tests.runtime.checks import assert_holds_nothing
from tests.runtime.hybrids import Open, alone, greedy, text
from tests.runtime.windowed_toys import several, wide

OWN = {"wide windows": wide, "several windows": several}
KINDS = ["gpt_oss", "gemma3_text", *OWN]
FEW = ["gpt_oss", "several windows"]
NEW = 6
LENGTHS = [150, 192, 193, 259]
PROMPTS = [text(i, n) for i, n in enumerate(LENGTHS)]


@pytest.fixture(autouse=True)
def own_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = hybrids.toy_of
    monkeypatch.setattr(hybrids, "toy_of", lambda kind: OWN[kind]() if kind in OWN else known(kind))


def stats(engine: Engine) -> dict[str, float]:
    return dict(engine.get_server_info()["stats"])


def whole(length: int) -> int:
    return length // 64 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_another_engine_goes_on_from_prompts_and_answers_of_the_first(
    kind: str, open_toy: Open, tmp_path: Path
) -> None:
    """It computes as many tokens as if all layers shared their slots."""
    first = open_toy(kind, disk_cache_dir=str(tmp_path))
    answers = greedy(first, PROMPTS, NEW)
    assert answers == [alone(kind, p, NEW) for p in PROMPTS]
    assert stats(first)["window_slots"]
    first.shutdown()
    again = open_toy(kind, disk_cache_dir=str(tmp_path))
    turns = [(*p, *a, 7, 8) for p, a in zip(PROMPTS, answers, strict=True)]
    assert greedy(again, turns, NEW) == [alone(kind, p, NEW) for p in turns]
    told = stats(again)
    assert told["restored_tokens"] == sum(whole(n + NEW - 1) for n in LENGTHS)
    assert told["computed_tokens"] == sum(len(t) - whole(len(t) - 3) for t in turns)
    assert told["disk_read_window_tokens"] > 0
    again.shutdown()
    once_more = open_toy(kind, disk_cache_dir=str(tmp_path))
    forks = [(*turns[0][: n + end], 9, end) for end in (0, NEW - 1) for n in LENGTHS[:1]]
    asked = [*PROMPTS, *forks, *(f[:-1] for f in forks)]
    assert greedy(once_more, asked, 3) == [alone(kind, p, 3) for p in asked]
    assert stats(once_more)["computed_tokens"] <= sum(len(p) - whole(len(p) - 1) for p in asked)
    assert_holds_nothing(once_more)


@pytest.mark.parametrize("kind", FEW)
def test_windows_leave_small_pools_and_come_back(kind: str, open_toy: Open, tmp_path: Path) -> None:
    """Three prompts in turn, with slots for one or two."""
    engine = open_toy(
        kind, disk_cache_dir=str(tmp_path), max_total_tokens=560, max_window_tokens=330
    )
    prompts = [text(10 + i, 180 + i) for i in range(3)]
    expected = [alone(kind, p, 40) for p in prompts]
    for _ in range(2):
        for prompt, answer in zip(prompts, expected, strict=True):
            assert greedy(engine, [prompt], 40) == [answer]
            engine.get_server_info()
    assert stats(engine)["restored_tokens"] > 0
    assert greedy(engine, prompts, 40) == expected
    assert_holds_nothing(engine)
    assert stats(engine)["window_free"] == stats(engine)["window_slots"]


@pytest.mark.parametrize("kind", FEW)
def test_preempted_rows_go_on_from_what_was_restored(
    kind: str, open_toy: Open, tmp_path: Path
) -> None:
    story = text(30, 150)
    first = open_toy(kind, disk_cache_dir=str(tmp_path))
    greedy(first, [story], 1)
    first.shutdown()
    small = {"max_total_tokens": 240, "max_window_tokens": 240}
    engine = open_toy(kind, disk_cache_dir=str(tmp_path), **small)
    prompts = [(*story, *text(i, 3 + i)) for i in range(6)]
    assert greedy(engine, prompts, 24) == [alone(kind, p, 24) for p in prompts]
    assert stats(engine)["restored_tokens"] == 128
    assert stats(engine)["preemptions"] > 0


def test_only_the_windows_before_ends_are_written(open_toy: Open, tmp_path: Path) -> None:
    first = open_toy("gpt_oss", disk_cache_dir=str(tmp_path))
    greedy(first, [text(3, 600)], 2)
    first.shutdown()
    folder = BlockFolder(tmp_path, 10**9)
    kinds = [kind_of(folder.read(key) or {}) for key in folder.keys()]  # noqa: SIM118
    assert kinds.count("block") == 9
    assert 1 <= kinds.count("window") <= 2


def test_8_bits_come_back_as_they_were(open_toy: Open, tmp_path: Path) -> None:
    options = {"kv_bits": 8, "disk_cache_dir": str(tmp_path)}
    first = open_toy("gpt_oss", **options)
    prompt = (*PROMPTS[1], 3)
    greedy(first, [PROMPTS[1]], 2)
    expected = greedy(first, [prompt], 20)
    first.shutdown()
    again = open_toy("gpt_oss", **options)
    assert greedy(again, [prompt], 20) == expected
    assert stats(again)["restored_tokens"] == 192


def test_a_folder_of_layers_that_shared_their_slots_is_not_misread(
    open_toy: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(window_memory, "windowed", lambda _: frozenset())
        first = open_toy("gpt_oss", disk_cache_dir=str(tmp_path))
        answer = greedy(first, PROMPTS[:1], NEW)
        assert "window_slots" not in stats(first)
        first.shutdown()
    written = set(tmp_path.glob("*.safetensors"))
    assert written
    new = open_toy("gpt_oss", disk_cache_dir=str(tmp_path))
    assert greedy(new, PROMPTS[:1], NEW) == answer
    assert stats(new)["restored_tokens"] == 0
    new.shutdown()
    again = open_toy("gpt_oss", disk_cache_dir=str(tmp_path))
    assert greedy(again, PROMPTS[:1], NEW) == answer
    told = stats(again)
    assert told["restored_tokens"] == 128
    assert told["disk_broken_files"] == 0
    assert written < set(tmp_path.glob("*.safetensors"))


def test_a_damaged_window_is_computed_again(open_toy: Open, tmp_path: Path) -> None:
    first = open_toy("gemma3_text", disk_cache_dir=str(tmp_path))
    answer = greedy(first, PROMPTS[:1], NEW)
    first.shutdown()
    folder = BlockFolder(tmp_path, 10**9)
    for key in folder.keys():  # noqa: SIM118
        if kind_of(folder.read(key) or {}) == "window":
            file = tmp_path / f"{key}.safetensors"
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
    again = open_toy("gemma3_text", disk_cache_dir=str(tmp_path))
    assert greedy(again, PROMPTS[:1], NEW) == answer
    assert stats(again)["cached_tokens"] == 0
    assert stats(again)["disk_broken_files"] > 0


def test_the_folder_stays_within_its_bound(open_toy: Open, tmp_path: Path) -> None:
    limit = 300_000
    engine = open_toy("gemma3_text", disk_cache_dir=str(tmp_path), disk_cache_bytes=limit)
    for i in range(6):
        greedy(engine, [text(20 + i, 260)], 2)
    engine.shutdown()
    assert 0 < sum(f.stat().st_size for f in tmp_path.glob("*.*")) <= limit
