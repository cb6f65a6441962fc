"""Programs of the language on the real model: what they share, and that sharing changes nothing."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.runtime.engine import Engine

EXAMPLES = Path(__file__).parents[2] / "examples"
PREFIX = "\n".join(
    f"Entry {n}: item {n * 7} costs {n * 3} coins and weighs {n} grams." for n in range(40)
)
METHODS = [
    sgl.token_length_normalized,
    sgl.greedy_token_selection,
    sgl.unconditional_likelihood_normalized,
]


@pytest.fixture
def engine(smollm2: Engine) -> Iterator[Engine]:
    smollm2.flush_cache()
    return smollm2


class Counted:
    """Counts of an engine since this was made."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = self._now()

    def __getitem__(self, name: str) -> int:
        return self._now()[name] - self._before[name]

    def _now(self) -> dict[str, int]:
        return dict(self._engine.get_server_info()["stats"])


@sgl.function
def ask_about(s: Any, item: int) -> None:
    s += PREFIX
    s += f"\nItem {item} costs"
    s += sgl.gen("cost", max_tokens=2, temperature=0, token_healing=False)


def test_programs_at_once_compute_the_prefix_they_share_once(engine: Engine) -> None:
    prompts = [engine.tokenizer.encode(f"{PREFIX}\nItem {i} costs") for i in range(8)]
    assert len(engine.tokenizer.encode(PREFIX)) >= 800
    unique = len({tuple(ids[:end]) for ids in prompts for end in range(1, len(ids) + 1)})
    counted = Counted(engine)
    states = ask_about.run_batch([{"item": i} for i in range(8)], backend=engine)
    assert len(list(states)) == 8
    assert counted["prompt_tokens"] == sum(map(len, prompts))
    assert counted["computed_tokens"] <= 1.02 * unique


def test_the_judges_second_reading_comes_from_the_cache(engine: Engine) -> None:
    judge = runpy.run_path(str(EXAMPLES / "llm_judge.py"))["judge"]
    first = judge.run(backend=engine)
    assert first["grade"] in "ABCD"
    counted = Counted(engine)
    second = judge.run(backend=engine)
    assert (second["grade"], second["verdict"]) == (first["grade"], first["verdict"])
    assert counted["cached_tokens"] >= 0.95 * counted["prompt_tokens"]


# -- forks ------------------------------------------------------------------------------------

TIPS = ["Eat well.", "Sleep enough."]


@sgl.function
def forked(s: Any, mode: str) -> None:
    s += "Two tips for a healthy life:\n"
    branches = s.fork(2)
    for branch, tip in zip(branches.states, TIPS, strict=True):
        branch += f"Tip: {tip} In other words:"
        branch += sgl.gen("words", max_tokens=8, temperature=0)
    branches.join(mode)
    s += "\nIn short:" + sgl.gen("summary", max_tokens=8, temperature=0)


@sgl.function
def alone(s: Any, tip: str) -> None:
    s += "Two tips for a healthy life:\n"
    s += f"Tip: {tip} In other words:"
    s += sgl.gen("words", max_tokens=8, temperature=0)


def test_a_branch_writes_what_it_would_write_alone(engine: Engine) -> None:
    state = forked.run(mode="gather_variable", backend=engine)
    engine.flush_cache()
    assert state["words"] == [alone.run(tip=tip, backend=engine)["words"] for tip in TIPS]
    assert "In other words" not in state.text()


def test_a_join_of_branches_side_by_side_computes_none_of_them_again(engine: Engine) -> None:
    plain = forked.run(mode="gather_variable", backend=engine)
    engine.flush_cache()
    counted = Counted(engine)
    joined = forked.run(mode="concate_and_append", backend=engine)
    assert all(words in joined.text() for words in plain["words"])
    assert joined["summary"] != plain["summary"]
    prompt = engine.tokenizer.encode
    texts = ["Two tips for a healthy life:\n", "\nIn short:"]
    texts += [f"Tip: {tip} In other words:" for tip in TIPS]
    once = sum(len(prompt(text)) for text in texts)
    # each branch's last generated token had no KV yet; text may split a token otherwise
    assert counted["computed_tokens"] <= once + 2 * len(TIPS)


# -- select -----------------------------------------------------------------------------------


@sgl.function
def capital(s: Any, country: str, method: Any) -> None:
    s += "The capital of Italy is Rome. The capital of Spain is Madrid.\n"
    s += f"The capital of {country} is"
    s += sgl.select("city", [" Paris", " Berlin", " Rome"], choices_method=method)
    s += "."


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_select_takes_the_right_choice_by_every_method(engine: Engine, method: Any) -> None:
    cities = {"France": " Paris", "Germany": " Berlin"}
    for country, city in cities.items():
        state = capital.run(country=country, method=method, backend=engine)
        assert state["city"] == city
        assert state.text().endswith(f"{city}.")


def test_select_scores_are_the_logprobs_of_the_choices_tokens(engine: Engine) -> None:
    state = capital.run(country="France", method=METHODS[0], backend=engine)
    meta = state.get_meta_info("city")
    prompt = state.text().removesuffix(" Paris.")
    for choice, tokens in zip(
        (" Paris", " Berlin", " Rome"), meta["input_token_logprobs"], strict=True
    ):
        ids, whole = (engine.tokenizer.encode(text) for text in (prompt, prompt + choice))
        asked: dict[str, Any] = {"return_logprob": True, "logprob_start_len": len(ids)}
        answer = engine.generate(input_ids=whole, max_new_tokens=0, **asked)["meta_info"]
        right = [p for p, *_ in answer["input_token_logprobs"]]
        assert [p for p, *_ in tokens] == pytest.approx(right, abs=1e-4)


# -- streams and turns ------------------------------------------------------------------------


@sgl.function
def chat(s: Any, questions: list[str]) -> None:
    for i, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer{i}", max_tokens=12, temperature=0))


def test_a_second_turn_finds_the_first_in_the_cache(engine: Engine) -> None:
    counted = Counted(engine)
    state = chat.run(questions=["What is water?", "And ice?"], backend=engine)
    assert state["answer1"]
    metas = [state.get_meta_info(f"answer{i}") for i in range(2)]
    first, second = metas
    assert second["cached_tokens"] >= first["prompt_tokens"] + first["completion_tokens"] - 1
    assert counted["computed_tokens"] < counted["prompt_tokens"]


def test_a_streamed_program_says_the_same(engine: Engine) -> None:
    whole = chat.run(questions=["What is water?"], backend=engine)
    state = chat.run(questions=["What is water?"], backend=engine, stream=True)
    pieces = list(state.text_iter("answer0"))
    assert "".join(pieces) == whole["answer0"]
    assert len(pieces) > 3
