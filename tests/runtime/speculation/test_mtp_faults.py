"""Prediction heads that fail, steps that fail beside them, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.errors import CorruptModelError, InvalidParamsError, UnsupportedModelError
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import load
from sgl_mlx.models.mtp_head import Head
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.speculation.head_runner import Guesses, HeadRunner
from sgl_mlx.runtime.speculation.mtp import open_head
from tests.models.mtp_toys import config_of, random_head, write_agreeing, write_random, write_toy
from tests.models.toy import toy_model
from tests.runtime.faults import unharmed
from tests.runtime.speculation.conftest import Open
from tests.runtime.speculation.test_engine_drafts import draw_prompt

GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
PROMPTS = [list(range(3, 5 + i)) for i in range(5)]


def asked(engine: Engine) -> list[list[int]]:
    found = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
    return [answer["output_ids"] for answer in found]


def answering(right: list[list[int]]) -> Callable[[Engine], None]:
    """Return an assertion that an engine gives the right answers to `PROMPTS`."""

    def assert_answers(engine: Engine) -> None:
        assert asked(engine) == right

    return assert_answers


def test_an_aborted_request_leaves_nothing(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(write_agreeing(tmp_path / "toy", "qwen3_5"), speculate="mtp")
    r = random.Random(5)
    with unharmed(engine, answering(asked(engine))):
        for _ in range(6):
            stream = engine.generate(draw_prompt(r), GREEDY, max_new_tokens=100, stream=True)
            for _ in range(r.randint(1, 5)):
                next(stream)
            stream.close()
    stats = engine.get_server_info()["stats"]
    assert stats["free_slots"] == 4000
    assert stats["accepted_tokens"] > 0


def test_a_head_that_fails_costs_guesses_alone(
    tmp_path: Path,
    open_engine: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_agreeing(tmp_path / "toy", "deepseek_v3")
    plain, drafting = (open_engine(folder, speculate=how) for how in ("off", "mtp"))
    failing = random.Random(2)

    def guess(*args: Any) -> Guesses:
        if failing.random() < 0.5:
            raise RuntimeError("no memory")
        return right(*args)

    right = HeadRunner.guess
    answers = answering(asked(plain))
    with unharmed(drafting, answers), monkeypatch.context() as patch:
        patch.setattr(HeadRunner, "guess", guess)
        answers(drafting)
    assert drafting.get_server_info()["stats"]["accepted_tokens"] > 0
    assert "the MTP head failed: RuntimeError: no memory" in caplog.text


def test_a_step_that_fails_is_tried_again_with_the_same_answers(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_agreeing(tmp_path / "toy", "qwen3_5")
    plain, drafting = (open_engine(folder, speculate=how) for how in ("off", "mtp"))
    failing = random.Random(4)

    def keys_values(*args: Any) -> Any:
        if failing.random() < 0.15:
            raise RuntimeError("out of memory")
        return right(*args)

    right = Head.keys_values
    one = asked(plain)
    with unharmed(drafting, answering(one)), monkeypatch.context() as patch:
        patch.setattr(Head, "keys_values", keys_values)
        for _ in range(4):
            other = drafting.generate(input_ids=PROMPTS, sampling_params=GREEDY)
            for mine, answer in zip(one, other, strict=True):
                if answer["meta_info"]["finish_reason"]["type"] != "abort":
                    assert answer["output_ids"] == mine
    assert drafting.get_server_info()["stats"]["accepted_tokens"] > 0


def test_a_checkpoint_without_a_head_is_refused_for_mtp_alone(
    tmp_path: Path, toy_folder: Path
) -> None:
    folder = write_toy(tmp_path / "toy", "qwen3_5", None)[0]
    with pytest.raises(UnsupportedModelError, match=r'no MTP head.*mtp\.\*.*speculate="auto"'):
        Engine(str(folder), speculate="mtp")
    with pytest.raises(UnsupportedModelError, match="architecture llama"):
        Engine(str(toy_folder), speculate="mtp")
    with Engine(str(folder), speculate="auto", max_total_tokens=500) as engine:
        assert engine.generate("a", max_new_tokens=2)["meta_info"]["completion_tokens"] == 2


def test_a_broken_head_is_refused_for_mtp_and_left_out_by_auto(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy_model("qwen3_5", config_of("qwen3_5"))
    head = random_head("qwen3_5", model)
    del head["fc.weight"]
    folder = write_toy(tmp_path / "toy", "qwen3_5", head, model)[0]
    with pytest.raises(CorruptModelError, match=r"MTP head.*projection\.weight is missing"):
        Engine(str(folder), speculate="mtp")
    with Engine(str(folder), speculate="auto", max_total_tokens=500) as engine:
        engine.generate("a", max_new_tokens=2)
    assert "nothing is drafted with the MTP head" in caplog.text


def test_mtp_on_several_ranks_is_refused_and_auto_goes_without(tmp_path: Path) -> None:
    loaded = load(write_random(tmp_path / "toy", "qwen3_5"))
    adapter = adapter_for(loaded.model)
    assert open_head("auto", loaded, adapter, alone=False) is None
    with pytest.raises(InvalidParamsError, match="in one process"):
        open_head("mtp", loaded, adapter, alone=False)


def test_mtp_beside_a_draft_model_is_refused(toy_folder: Path) -> None:
    with pytest.raises(InvalidParamsError, match='speculate="auto", but it is "mtp"'):
        Engine(str(toy_folder), speculate="mtp", draft=str(toy_folder))
