"""Several ranks answer as one process does, token for token, under forks, aborts and preemption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.runtime.ranks.launcher import Launched, lines, python
from tests.runtime.ranks.toys import EIGHT_HEADS, write_toy
from tests.runtime.ranks.work import PROMPTS, run

TWO = ["llama", "qwen3_moe", "gpt_oss", "minimax", "deepseek_v2", "qwen3_5"]
"""Dense and mixtures of experts, sinks and windows, MLA, and recurrent layers."""

PIPELINES: list[tuple[int, dict[str, dict[str, Any]]]] = [
    (2, {"qwen3_next": {"num_hidden_layers": 6, "full_attention_interval": 2}}),
    (3, {"deepseek_v2": {}}),
]
"""Ranks and toys: a recurrent layer as the last one that a rank has, and MLA."""
PIPELINED = {"pipeline": True, "chunked_prefill_size": 16}
"""Options with chunks so small that steps without any logits occur."""

OnRanks = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def on_ranks(tmp_path: Path) -> OnRanks:
    """`on_ranks(2, models, **options)` answers on two ranks, with each model in turn."""

    def answer(size: int, models: list[Path], **options: Any) -> list[dict[str, Any]]:
        file, given = tmp_path / "answers", json.dumps(options)
        command = [*python("tests.runtime.ranks.work", str(file), given), *map(str, models)]
        with Launched(tmp_path / "run", command, size) as ranks:
            codes = ranks.codes()
            assert codes == [0] * size, ranks.output(0, "err")
            assert not any(ranks.output(rank) for rank in range(size))
        return lines(file.read_text())

    return answer


def compare(models: list[Path], found: list[dict[str, Any]], size: int) -> None:
    mx.disable_compile()
    try:
        for model, on_ranks in zip(models, found, strict=True):
            alone = json.loads(json.dumps(run(str(model))))
            assert len(alone["tokens"]) > PROMPTS > 20
            assert on_ranks["tokens"] == alone["tokens"], model.name
            assert (on_ranks["ranks"], alone["ranks"]) == (size, 1)
            assert on_ranks["preempted"] > 0, model.name
    finally:
        mx.enable_compile()


def test_two_ranks_answer_as_one_process(tmp_path: Path, on_ranks: OnRanks) -> None:
    models = [write_toy(tmp_path / name, name) for name in TWO]
    compare(models, on_ranks(2, models), 2)


def test_four_ranks_answer_as_one_process(tmp_path: Path, on_ranks: OnRanks) -> None:
    models = [write_toy(tmp_path / name, name, **EIGHT_HEADS) for name in ("qwen3",)]
    compare(models, on_ranks(4, models), 4)


@pytest.mark.parametrize(("ranks", "toys"), PIPELINES)
def test_ranks_with_whole_layers_answer_as_one_process(
    ranks: int, toys: dict[str, dict[str, Any]], tmp_path: Path, on_ranks: OnRanks
) -> None:
    models = [write_toy(tmp_path / name, name, **changes) for name, changes in toys.items()]
    compare(models, on_ranks(ranks, models, **PIPELINED), ranks)
