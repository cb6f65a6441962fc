"""A draft model guesses, and the large model's output stays what it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.errors import InvalidParamsError, MemoryLimitError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.speculation import drafting as assembled
from sgl_mlx.runtime.speculation.costs import Costs
from sgl_mlx.runtime.speculation.policy import Step, model_length
from tests.models.conftest import LLAMA, write_folder
from tests.models.toy import toy_model
from tests.runtime.speculation.costs import CHEAP, FREE_VERIFYING
from tests.runtime.speculation.test_engine_drafts import draw_params, draw_prompt, is_tie, same

GREEDY = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def near_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy with slightly other weights, as a draft model that is often right."""
    config = LLAMA.full_config()
    r = np.random.default_rng(0)
    weights = {
        name: np.array(x) * (1 + 0.02 * r.standard_normal(x.shape).astype(np.float32))
        for name, x in dict(tree_flatten(toy_model("llama", config).parameters())).items()
    }
    return write_folder(tmp_path_factory.mktemp("models") / "near", config, weights)


@pytest.fixture(scope="module")
def engines(toy_folder: Path, near_folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """An engine without speculation, and one whose draft model is asked whenever it can be."""

    def costs(*_: Any) -> Costs:
        return CHEAP if asked.pop() else FREE_VERIFYING

    asked = [True, False]  # the large model's costs are asked for first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembled, "kept_costs", costs)
        with (
            Engine(str(toy_folder), max_total_tokens=4000, speculate="off") as plain,
            Engine(
                str(toy_folder), max_total_tokens=600, speculate="tree", draft=str(near_folder)
            ) as drafting,
        ):
            yield plain, drafting


def test_requests_are_answered_as_without_a_draft_model(engines: tuple[Engine, Engine]) -> None:
    plain, drafting = engines
    r = random.Random(23)
    ties = 0
    for first in range(0, 200, 4):
        prompts = [draw_prompt(r) for _ in range(4)]
        params = [{**draw_params(r, first + i), "n": 1} for i in range(4)]
        right, found = plain.generate(prompts, params), drafting.generate(prompts, params)
        for prompt, asked, one, other in zip(prompts, params, right, found, strict=True):
            if not same(one, other):
                assert is_tie(plain, prompt, asked, one, other), (asked, one, other)
                ties += 1
    assert ties <= 2
    stats = drafting.get_server_info()["stats"]
    assert stats["accepted_tokens"] > stats["drafted_tokens"] / 3
    assert stats["accepted_tokens"] > 500
    assert stats["steps"] < plain.get_server_info()["stats"]["steps"]


def test_a_flushed_engine_drafts_on(engines: tuple[Engine, Engine]) -> None:
    plain, drafting = engines
    assert drafting.flush_cache()
    answer = drafting.generate("flushed", GREEDY)
    assert answer["text"] == plain.generate("flushed", GREEDY)["text"]
    assert answer["meta_info"]["accepted_tokens"] > 0


def test_a_failing_draft_model_drafts_nothing(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drafting = engines
    speculator: Any = drafting._loop.model.scheduler._speculator
    runner = speculator._model._runner

    def fail(plan: Any) -> Any:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", fail)
        answer = drafting.generate("failing", GREEDY)
    assert answer["text"] == plain.generate("failing", GREEDY)["text"]
    assert drafting.generate("working", GREEDY)["meta_info"]["accepted_tokens"] > 0


def test_another_vocabulary_is_refused_with_the_first_difference(toy_folder: Path) -> None:
    with pytest.raises(InvalidParamsError, match=r"token \d+ is b'.*' there and b'.*' here"):
        Engine(str(toy_folder), max_total_tokens=400, draft="smollm2")


def test_a_draft_model_that_does_not_fit_is_refused_with_numbers(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembled, "available_bytes", lambda: 10**4)
    monkeypatch.setattr(assembled, "kept_costs", lambda *_: FREE_VERIFYING)
    with pytest.raises(MemoryLimitError, match=r"\d+ x \d+ bytes"):
        Engine(str(toy_folder), max_total_tokens=400, draft=str(toy_folder))


def test_a_draft_model_and_no_speculation_exclude_each_other() -> None:
    with pytest.raises(InvalidParamsError, match="draft model"):
        Engine("smollm2", draft="smollm2", speculate="off")


def test_a_draft_model_is_asked_only_where_it_pays() -> None:
    cheap, dear = Costs(((1, 0.1),), ((1, 0.1),)), Costs(((1, 1.0),), ((1, 1.0),))
    plain = Step(1, 1, 1.0)
    verify = [1.0] * 20
    assert model_length(1, 0.8, plain, verify, cheap) > 2
    assert model_length(1, 0.8, plain, verify, dear) == 0
    assert model_length(1, 0.05, plain, verify, cheap) == 0
    assert model_length(1, 0.99, plain, [1.0, 1.0], cheap) <= 1
