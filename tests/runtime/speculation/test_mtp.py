"""A model's own MTP head guesses, and the model's output stays what it was."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.core import Parallel, SamplingParams, Text
from sgl_mlx.models.loader import load
from sgl_mlx.models.trunk import trunk_of
from sgl_mlx.runtime import config
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation import drafting, speculator
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.head_runner import Guesses, HeadRunner
from sgl_mlx.runtime.speculation.mtp import MtpDrafter
from sgl_mlx.runtime.speculation.policy import Guess
from tests.models.mtp_reference import Reference
from tests.models.mtp_toys import (
    WITH_HEADS,
    config_of,
    hidden_of,
    published,
    random_head,
    write_agreeing,
    write_random,
    write_toy,
)
from tests.models.toy import toy_model
from tests.models.vision.conftest import read_golden, write_golden
from tests.runtime import qwen
from tests.runtime.speculation.conftest import Open
from tests.runtime.speculation.test_engine_drafts import draw_params, draw_prompt, is_tie, same

REQUESTS = int(os.environ.get("DRAFTED_REQUESTS", "24"))
BATCH = 6
GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}


# -- the output ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_requests_are_answered_as_without_a_head(
    architecture: str, tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all sampling parameters, in batches, forked and preempted.

    `DRAFTED_REQUESTS=1000` asks a thousand times.
    """
    folder = write_agreeing(tmp_path / "toy", architecture)
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
    assert ties <= max(1, REQUESTS // 200)
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
    folder = write_agreeing(tmp_path / "toy", architecture)
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
    folder = write_agreeing(tmp_path / "toy", "deepseek_v3")
    branches = Parallel(((Text("one"),), (Text("two and more"),)))
    prompt = Text("a trunk "), branches, Text(" the end")
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    answers = []
    for how in ("off", "mtp"):
        engine = open_engine(folder, speculate=how)
        answers.append(engine.submit(prompt, params).result()[0].token_ids)
    assert answers[0] == answers[1]
    assert engine.get_server_info()["stats"]["accepted_tokens"] > 0


def test_prompts_with_pictures_are_answered_as_by_transformers(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = read_golden("qwen3_5")
    folder = write_golden(tmp_path / "toy", toy)
    head = published("qwen3_5", toy.config, random_head("qwen3_5", load(folder).model))
    arrays = {name: mx.array(weight) for name, weight in head.items()}
    mx.save_safetensors(str(folder / "model-mtp.safetensors"), arrays)
    asked = guess_always(monkeypatch)
    engine = open_engine(folder, speculate="mtp", chunked_prefill_size=16)
    prompts = [qwen.prompt(engine, "qwen3_5", case) for case in qwen.CASES]
    found = [qwen.tokens(answer) for answer in qwen.ask(engine, *prompts)]
    assert found == [qwen.expected("qwen3_5", case) for case in qwen.CASES]
    assert len(asked) > len(qwen.CASES)


class Wrong:
    """Drafter that always has a guess, and is never right."""

    def __init__(self, likelihood: float) -> None:
        self._likelihood = likelihood

    def propose(self, s: Sequence, limit: int) -> Proposal | None:
        return Proposal((0,) * limit, "wrong", self._likelihood)

    def ended(self, s: Sequence) -> None:
        pass

    def flush(self) -> None:
        pass


def test_the_head_is_asked_where_another_guess_is_less_likely(
    tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_agreeing(tmp_path / "toy", "glm4_moe")
    counts = []
    for likelihood in (0.3, 0.9):
        wrong = Wrong(likelihood)
        monkeypatch.setattr(drafting, "drafters", lambda *_, wrong=wrong: (wrong,))
        engine = open_engine(folder, speculate="auto")
        found = engine.generate(input_ids=[[5, 6, 7]], sampling_params=GREEDY)
        counts.append(found[0]["meta_info"].get("accepted_tokens", 0))
    unlikely, likely = counts
    assert unlikely > likely


# -- the guesses --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_guesses_are_those_of_the_head_computed_alone(
    architecture: str, tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches, after accepted and rejected guesses, and with prompts from the cache."""
    folder = write_random(tmp_path / "toy", architecture)
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
        written = {s.id: list(s.tokens) for s in sequences}
        if not in_epoch[0]:
            asked.extend((written[name], proposal.tokens) for name, proposal in found.items())
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
