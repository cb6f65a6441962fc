"""A model's own MTP head guesses, and the model's output stays what it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.core import Parallel, SamplingParams, Text
from sgl_mlx.errors import CorruptModelError, InvalidParamsError, UnsupportedModelError
from sgl_mlx.models.mtp_head import Head
from sgl_mlx.models.trunk import trunk_of
from sgl_mlx.runtime import assembly, config
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation import speculator
from sgl_mlx.runtime.speculation.costs import Costs
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.head_runner import Guesses, HeadRunner
from sgl_mlx.runtime.speculation.mtp import MtpDrafter
from sgl_mlx.runtime.speculation.policy import Guess
from tests.models.mtp_reference import Reference
from tests.models.mtp_toys import (
    WITH_HEADS,
    agreeing_toy,
    config_of,
    hidden_of,
    random_head,
    write_toy,
)
from tests.models.toy import toy_model
from tests.runtime.speculation.test_engine_drafts import draw_params, draw_prompt, is_tie, same

FREE = Costs(((1, 1.0),), ((1, 1.0),))
CHEAP = Costs(((1, 1e-6),), ((1, 1e-6),))
REQUESTS = 24
BATCH = 6
GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}

Open = Callable[..., Engine]


@pytest.fixture
def open_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """`open_engine(folder, **options)`: an engine that drafts wherever a guess may be right."""
    engines: list[Engine] = []
    monkeypatch.setattr(assembly, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(assembly, "measure_head", lambda *_: CHEAP)

    def make(folder: Path, **options: Any) -> Engine:
        engines.append(Engine(str(folder), **{"max_total_tokens": 4000, **options}))
        return engines[-1]

    mx.disable_compile()
    yield make
    for engine in engines:
        engine.shutdown()
    mx.enable_compile()


def random_toy(folder: Path, architecture: str) -> Path:
    model = toy_model(architecture, config_of(architecture))
    return write_toy(folder, architecture, random_head(architecture, model))[0]


def agreeing_folder(folder: Path, architecture: str) -> Path:
    model, head = agreeing_toy(architecture)
    return write_toy(folder, architecture, head, model)[0]


# -- the output ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_requests_are_answered_as_without_a_head(
    architecture: str, tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all sampling parameters, in batches, forked and preempted."""
    folder = agreeing_folder(tmp_path / "toy", architecture)
    plain = open_engine(folder, speculate="off")
    monkeypatch.setattr(config, "SchedulerLimits", partial(SchedulerLimits, decode_margin=0))
    drafting = open_engine(folder, speculate="mtp", max_total_tokens=110)
    r, ties = random.Random(29), 0
    for first in range(0, REQUESTS, BATCH):
        prompts = [draw_prompt(r) for _ in range(BATCH)]
        params = [{**draw_params(r, first + i), "n": 1} for i in range(BATCH)]
        right, found = plain.generate(prompts, params), drafting.generate(prompts, params)
        for prompt, asked, one, other in zip(prompts, params, right, found, strict=True):
            if not same(one, other):
                assert is_tie(plain, prompt, asked, one, other), (asked, one, other)
                ties += 1
    assert ties <= 1
    forked = [
        e.generate("name 12", GREEDY, n=3, temperature=0.8, seed=1) for e in (plain, drafting)
    ]
    assert [x["output_ids"] for x in forked[0]] == [x["output_ids"] for x in forked[1]]
    stats = drafting.get_server_info()["stats"]
    assert stats["preemptions"] > 0
    assert 0 < stats["accepted_tokens"] < stats["drafted_tokens"]


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_head_that_agrees_saves_steps(
    architecture: str, tmp_path: Path, open_engine: Open
) -> None:
    folder = agreeing_folder(tmp_path / "toy", architecture)
    plain, drafting = (open_engine(folder, speculate=how) for how in ("off", "auto"))
    prompts = [list(range(3 + i, 9 + 2 * i)) for i in range(4)]
    right, found = (
        e.generate(input_ids=prompts, sampling_params=GREEDY) for e in (plain, drafting)
    )
    assert [x["output_ids"] for x in right] == [x["output_ids"] for x in found]
    counts = [x["meta_info"] for x in found]
    assert sum(x["accepted_tokens"] for x in counts) > 4 * GREEDY["max_new_tokens"] / 3
    before, after = (e.get_server_info()["stats"] for e in (plain, drafting))
    assert after["steps"] < 0.8 * before["steps"]
    assert after.get("states_running", 0) == 0
    assert after["forward_passes"] == after["steps"]  # of the model; the head's are not counted


def test_joined_branches_are_continued_as_without_a_head(tmp_path: Path, open_engine: Open) -> None:
    folder = agreeing_folder(tmp_path / "toy", "deepseek_v3")
    branches = Parallel(((Text("one"),), (Text("two and more"),)))
    prompt = Text("a trunk "), branches, Text(" the end")
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    answers = []
    for how in ("off", "mtp"):
        engine = open_engine(folder, speculate=how)
        answers.append(engine.submit(prompt, params).result()[0].token_ids)
    assert answers[0] == answers[1]
    assert engine.get_server_info()["stats"]["accepted_tokens"] > 0


# -- the guesses --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_guesses_are_those_of_the_head_computed_alone(
    architecture: str, tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches, after accepted and rejected guesses, and with prompts from the cache."""
    folder = random_toy(tmp_path / "toy", architecture)
    model = toy_model(architecture, config_of(architecture))
    reference = reference_of(architecture, model)
    asked = guess_always(monkeypatch)
    engine = open_engine(folder, speculate="mtp")
    r = random.Random(5)
    prompts = [[r.randrange(3, 280) for _ in range(n)] for n in (1, 2, 7, 30)]
    for _ in range(2):
        engine.generate(input_ids=prompts, sampling_params=GREEDY)
    assert len(asked) > 30
    check_guesses(asked, model, reference)


WIDE: dict[str, dict[str, int]] = {
    "qwen3_5": {"head_dim": 16},
    "deepseek_v3": {"qk_rope_head_dim": 16},
}
"""Sizes that the CPU's kernels support."""


@pytest.mark.parametrize("architecture", WIDE)
def test_guesses_are_right_on_kernels_and_from_disk(
    architecture: str, tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks; then by another engine, which reads the prompts' keys from disk."""
    sizes = WIDE[architecture]
    model = toy_model(architecture, config_of(architecture, **sizes))
    head = random_head(architecture, model)
    folder = write_toy(tmp_path / "toy", architecture, head, model, **sizes)[0]
    reference = reference_of(architecture, model, **sizes)
    asked = guess_always(monkeypatch)
    r = random.Random(6)
    prompts = [[r.randrange(3, 280) for _ in range(n)] for n in (40, 150)]
    answers = []
    for _ in range(2):
        options = {"chunked_prefill_size": 32, "disk_cache_dir": str(tmp_path / "disk")}
        engine = open_engine(folder, speculate="mtp", **options)
        found = engine.generate(input_ids=prompts, sampling_params=GREEDY)
        answers.append([x["output_ids"] for x in found])
        engine.shutdown()
    assert answers[0] == answers[1]
    assert found[1]["meta_info"]["cached_tokens"] > 60
    assert len(asked) > 12
    check_guesses(asked, model, reference)


def reference_of(architecture: str, model: Any, **sizes: int) -> Reference:
    holder = getattr(model, "language_model", model)
    head = random_head(architecture, model)
    embedding, output = trunk_of(model).embed_tokens.weight, holder.lm_head.weight
    return Reference(architecture, config_of(architecture, **sizes), head, embedding, output)


Asked = list[tuple[list[int], tuple[int, ...]]]
"""Sequences and the guesses at what follows."""


def guess_always(patch: pytest.MonkeyPatch) -> Asked:
    """Draft three tokens for each sequence in each step; return a list that grows.

    Guesses while a decode epoch is open are left out: its keys are not in the pool yet.
    """
    asked: Asked = []
    in_epoch = [False]

    def draft(self: MtpDrafter, sequences: list[Sequence], count: int) -> dict[str, Proposal]:
        found = own(self, sequences, count)
        tokens = {s.id: list(s.tokens) for s in sequences}
        if not in_epoch[0]:
            asked.extend((tokens[name], proposal.tokens) for name, proposal in found.items())
        return found

    def draft_rows(self: HeadRunner, rows: Any, count: int, written: Any) -> Guesses:
        in_epoch[0] = bool(written)
        return of_rows(self, rows, count, written)

    def everything(guesses: dict[str, Guess], *_: Any) -> dict[str, int]:
        return {name: guess.length for name, guess in guesses.items()}

    own, of_rows = MtpDrafter.draft, HeadRunner.draft
    patch.setattr(HeadRunner, "draft", draft_rows)
    patch.setattr(MtpDrafter, "draft", draft)
    patch.setattr(speculator, "model_length", lambda *_: 3)
    patch.setattr(speculator, "lengths", everything)
    return asked


def check_guesses(asked: Asked, model: Any, reference: Reference) -> None:
    """Compare guesses with the reference's; one in a hundred may be tipped by rounding."""
    wrong = 0
    for tokens, guessed in asked:
        hidden = hidden_of(model, tokens)[:-1]
        wrong += list(guessed) != reference.guess(tokens, hidden, len(guessed))
    assert wrong <= len(asked) / 100, (wrong, len(asked))


# -- what goes wrong ----------------------------------------------------------------------------


def test_an_aborted_request_leaves_nothing(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(agreeing_folder(tmp_path / "toy", "qwen3_5"), speculate="mtp")
    r = random.Random(5)
    for _ in range(6):
        stream = engine.generate(draw_prompt(r), GREEDY, max_new_tokens=100, stream=True)
        for _ in range(r.randint(1, 5)):
            next(stream)
        stream.close()
    engine.generate("the end", max_new_tokens=1)
    assert engine.flush_cache()
    stats = engine.get_server_info()["stats"]
    assert stats["free_slots"] == 4000
    assert stats["accepted_tokens"] > 0


def test_a_head_that_fails_costs_guesses_alone(
    tmp_path: Path,
    open_engine: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = agreeing_folder(tmp_path / "toy", "deepseek_v3")
    plain, drafting = (open_engine(folder, speculate=how) for how in ("off", "mtp"))
    failing = random.Random(2)

    def guess(*args: Any) -> Guesses:
        if failing.random() < 0.5:
            raise RuntimeError("no memory")
        return right(*args)

    right = HeadRunner.guess
    monkeypatch.setattr(HeadRunner, "guess", guess)
    prompts = [list(range(3, 5 + i)) for i in range(5)]
    one, other = (e.generate(input_ids=prompts, sampling_params=GREEDY) for e in (plain, drafting))
    assert [x["output_ids"] for x in one] == [x["output_ids"] for x in other]
    assert drafting.get_server_info()["stats"]["accepted_tokens"] > 0
    assert "the MTP head failed: RuntimeError: no memory" in caplog.text


def test_a_step_that_fails_is_tried_again_with_the_same_answers(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = agreeing_folder(tmp_path / "toy", "qwen3_5")
    plain, drafting = (open_engine(folder, speculate=how) for how in ("off", "mtp"))
    failing = random.Random(4)

    def keys_values(*args: Any) -> Any:
        if failing.random() < 0.15:
            raise RuntimeError("out of memory")
        return right(*args)

    right = Head.keys_values
    prompts = [list(range(3, 5 + i)) for i in range(5)]
    one = plain.generate(input_ids=prompts, sampling_params=GREEDY)
    monkeypatch.setattr(Head, "keys_values", keys_values)
    for _ in range(4):
        other = drafting.generate(input_ids=prompts, sampling_params=GREEDY)
        for mine, answer in zip(one, other, strict=True):
            if answer["meta_info"]["finish_reason"]["type"] != "abort":
                assert answer["output_ids"] == mine["output_ids"]
    assert drafting.get_server_info()["stats"]["accepted_tokens"] > 0


# -- what is refused ----------------------------------------------------------------------------


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


def test_mtp_beside_a_draft_model_is_refused(toy_folder: Path) -> None:
    with pytest.raises(InvalidParamsError, match='speculate="auto", but it is "mtp"'):
        Engine(str(toy_folder), speculate="mtp", draft=str(toy_folder))
