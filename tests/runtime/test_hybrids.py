"""Models with recurrent layers answer as mlx-lm does with each prompt alone."""

from __future__ import annotations

import pytest

from sgl_mlx.runtime.engine import Engine
from tests.runtime.hybrids import HYBRIDS, PURE, Open, alone, greedy, text

NEW = 10
LENGTHS = [1, 2, 5, 17, 17, 40, 71]


def stats(engine: Engine) -> dict[str, float]:
    return dict(engine.get_server_info()["stats"])


@pytest.mark.parametrize("architecture", [*HYBRIDS, *PURE])
def test_an_uneven_batch_its_second_turn_and_a_fork(architecture: str, open_toy: Open) -> None:
    engine = open_toy(architecture)
    prompts = [text(i, n) for i, n in enumerate(LENGTHS)]
    first = greedy(engine, prompts, NEW)
    assert first == [alone(architecture, p, NEW) for p in prompts]
    before = stats(engine)["computed_tokens"]
    turns = [
        (*p, *said, *text(50 + i, 3))
        for i, (p, said) in enumerate(zip(prompts, first, strict=True))
    ]
    assert greedy(engine, turns, NEW) == [alone(architecture, p, NEW) for p in turns]
    # of the first turn, only the last token of its answer had no state yet
    assert stats(engine)["computed_tokens"] - before == 4 * len(turns)
    before = stats(engine)["computed_tokens"]
    forks = [(*turns[-1], *text(90, 9), *text(70 + i, 4)) for i in range(4)]
    assert greedy(engine, forks, NEW) == [alone(architecture, p, NEW) for p in forks]
    assert stats(engine)["computed_tokens"] - before < 9 + 4 * 4 + 8  # snapshots are 8 apart


@pytest.mark.parametrize("architecture", [*HYBRIDS, *PURE])
def test_preempted_rows_go_on(architecture: str, open_toy: Open) -> None:
    engine = open_toy(architecture, max_total_tokens=110)
    prompts = [text(i, 11 + i) for i in range(6)]
    assert greedy(engine, prompts, 24) == [alone(architecture, p, 24) for p in prompts]
    assert stats(engine)["preemptions"] > 0


@pytest.mark.parametrize("states", [1, 2, 3, 5])
def test_few_state_slots_change_no_answer(states: int, open_toy: Open) -> None:
    engine = open_toy("qwen3_next", max_total_states=states)
    for seed in (0, 0, 5):
        prompts = [text(seed + i, 9 + 5 * i) for i in range(5)]
        assert greedy(engine, prompts, 6) == [alone("qwen3_next", p, 6) for p in prompts]
