"""Models with layers of a sliding window answer as mlx-lm does, while their slots are freed."""

from __future__ import annotations

import pytest

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool import window_memory
from tests.models.toy_configs import WINDOW
from tests.runtime.checks import assert_holds_nothing
from tests.runtime.hybrids import WINDOWED, Open, alone, greedy, text

NEW = 10
LENGTHS = [1, 2, 5, 17, 17, 40, 71]
FEW = 60
"""Window slots for some of the rows of `LENGTHS` at a time, and no prefix beside them."""


def stats(engine: Engine) -> dict[str, float]:
    return dict(engine.get_server_info()["stats"])


@pytest.mark.parametrize("slots", [None, FEW])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_an_uneven_batch_its_second_turn_and_a_fork(
    architecture: str, slots: int | None, open_toy: Open
) -> None:
    engine = open_toy(architecture, max_window_tokens=slots)
    assert stats(engine)["window_slots"] == (slots or 2000)
    prompts = [text(i, n) for i, n in enumerate(LENGTHS)]
    first = greedy(engine, prompts, NEW)
    assert first == [alone(architecture, p, NEW) for p in prompts]
    before = stats(engine)["computed_tokens"]
    turns = [
        (*p, *said, *text(50 + i, 3))
        for i, (p, said) in enumerate(zip(prompts, first, strict=True))
    ]
    assert greedy(engine, turns, NEW) == [alone(architecture, p, NEW) for p in turns]
    if slots is None:  # all but the last token of each answer is reused
        assert stats(engine)["computed_tokens"] - before == 4 * len(turns)
    forks = [(*turns[-1][: 30 + 7 * i], *text(70 + i, 4)) for i in range(4)]
    assert greedy(engine, forks, NEW) == [alone(architecture, p, NEW) for p in forks]
    if slots is not None:
        assert stats(engine)["window_evicted"] > 0
    assert_holds_nothing(engine)
    assert stats(engine)["window_free"] == stats(engine)["window_slots"]


def test_preempted_rows_go_on(open_toy: Open) -> None:
    engine = open_toy("gpt_oss", max_total_tokens=110, max_window_tokens=106)
    prompts = [text(i, 11 + i) for i in range(6)]
    assert greedy(engine, prompts, 24) == [alone("gpt_oss", p, 24) for p in prompts]
    assert stats(engine)["preemptions"] > 0


def test_8_bits_are_those_of_layers_that_share_their_slots(
    open_toy: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = open_toy("gpt_oss", kv_bits=8, max_window_tokens=4 * WINDOW)
    monkeypatch.setattr(window_memory, "windowed", lambda _: frozenset())
    together = open_toy("gpt_oss", kv_bits=8)
    assert "window_slots" not in stats(together)
    for seed in range(3):
        prompt = text(seed, 40)
        assert greedy(few, [prompt], 30) == greedy(together, [prompt], 30)


def test_a_long_row_takes_window_slots_of_its_window_alone(open_toy: Open) -> None:
    engine = open_toy("gemma3_text", max_window_tokens=4 * WINDOW)
    prompt = text(3, 300)
    assert greedy(engine, [prompt], 100) == [alone("gemma3_text", prompt, 100)]
    assert stats(engine)["window_slots"] == 4 * WINDOW
    assert stats(engine)["preemptions"] == 0


def test_repeated_text_is_drafted_over_freed_windows(open_toy: Open) -> None:
    engine = open_toy("gpt_oss", max_window_tokens=5 * WINDOW, speculate="auto")
    prompts = [text(3, 9) * 6, text(4, 5) * 9]
    for _ in range(2):
        assert greedy(engine, prompts, 40) == [alone("gpt_oss", p, 40) for p in prompts]


def test_too_few_window_slots_are_refused_with_the_numbers(open_toy: Open) -> None:
    with pytest.raises(MemoryLimitError, match="at least 8, the sliding window, got 3"):
        open_toy("gpt_oss", max_window_tokens=3)


def test_a_model_without_windows_has_no_window_slots(smollm2: Engine) -> None:
    assert "window_slots" not in stats(smollm2)
