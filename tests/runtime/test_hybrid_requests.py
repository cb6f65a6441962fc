"""All that a request may ask for, on models with recurrent layers."""

from __future__ import annotations

import re
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Parallel, SamplingParams, Shift, Text
from sgl_mlx.errors import MemoryLimitError, PromptError
from sgl_mlx.runtime.pool import capacity
from tests.patience import PATIENCE
from tests.runtime import plain
from tests.runtime.hybrids import Open, alone, greedy, module_of, text

KINDS = ["qwen3_next", "mamba"]
GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)


@pytest.mark.parametrize(
    "prompt",
    [
        (Text("a"), Parallel(((Text("b"),), (Text("c"),))), Text("d")),
        (Text("a"), Shift(7), Text("b")),
    ],
    ids=["side by side", "gap"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_join_by_keys_and_values_is_refused(
    kind: str, prompt: tuple[Any, ...], open_toy: Open
) -> None:
    engine = open_toy(kind)
    assert not engine.supports_parallel
    with pytest.raises(PromptError, match=r"has recurrent layers.*join by text"):
        engine.submit(prompt, GREEDY).result(PATIENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_of_a_prompt_are_those_of_a_forward_pass(kind: str, open_toy: Open) -> None:
    engine, ids = open_toy(kind), list(text(3, 60))
    expected = plain.log_softmax(module_of(kind), ids)
    for start in (0, 37, 37, 0):  # again over what is cached
        asked: dict[str, Any] = {"return_logprob": True, "logprob_start_len": start}
        found = engine.generate(input_ids=ids, max_new_tokens=0, **asked)["meta_info"]
        scored = [p for p, *_ in found["input_token_logprobs"] if p is not None]
        first = max(start, 1)
        wanted = [float(expected[i - 1, ids[i]]) for i in range(first, len(ids))]
        assert scored == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_scored_from_one_snapshot(kind: str, open_toy: Open) -> None:
    engine = open_toy(kind)
    trunk, ends = text(1, 50), [text(10 + i, 3) for i in range(4)]
    asked: dict[str, Any] = {"return_logprob": True, "logprob_start_len": 50, "max_new_tokens": 0}
    answers = engine.generate(input_ids=[[*trunk, *end] for end in ends], **asked)
    for answer, end in zip(answers, ends, strict=True):
        ids = [*trunk, *end]
        expected = plain.log_softmax(module_of(kind), ids)
        wanted = [float(expected[i - 1, ids[i]]) for i in range(50, 53)]
        found = [p for p, *_ in answer["meta_info"]["input_token_logprobs"]]
        assert found == pytest.approx(wanted, abs=2e-4)
    stats = engine.get_server_info()["stats"]
    assert stats["computed_tokens"] == 49 + 4 * (1 + 3)
    assert stats["snapshots_taken"] == 1


def test_samples_of_one_prompt_start_from_one_snapshot_and_are_those_of_alone(
    open_toy: Open,
) -> None:
    engine, ids = open_toy("qwen3_next"), list(text(4, 40))
    params = {"max_new_tokens": 8, "temperature": 0.9, "ignore_eos": True}
    samples = engine.generate(input_ids=ids, n=3, seed=11, **params)
    assert engine.get_server_info()["stats"]["computed_tokens"] == 39 + 3
    engine.flush_cache()
    for i, sample in enumerate(samples):
        again = engine.generate(input_ids=ids, seed=11 + i, **params)
        assert again["output_ids"] == sample["output_ids"]


def test_a_stream_a_constraint_and_a_program_in_one_batch(open_toy: Open) -> None:
    engine = open_toy("qwen3_next")
    prompts = [text(i, 20 + 3 * i) for i in range(3)]
    futures = [engine.submit(list(p), GREEDY) for p in prompts]
    params = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    *_, last = engine.generate(input_ids=list(prompts[0]), sampling_params=params, stream=True)
    assert last["output_ids"] == alone("qwen3_next", prompts[0], 6)
    for future, prompt in zip(futures, prompts, strict=True):
        assert list(future.result(PATIENCE)[0].token_ids) == alone("qwen3_next", prompt, 6)


def test_what_was_aborted_leaves_states_that_are_right(open_toy: Open) -> None:
    engine, prompt = open_toy("qwen3_next"), text(6, 50)
    long = SamplingParams(max_new_tokens=200, temperature=0, ignore_eos=True)
    for _ in range(3):
        stream = engine.generate(input_ids=list(prompt), sampling_params=long, stream=True)
        said = [next(stream) for _ in range(4)][-1]["output_ids"]
        stream.close()
        turn = (*prompt, *said, 5)
        assert greedy(engine, [turn], 6) == [alone("qwen3_next", turn, 6)]
    stats = engine.get_server_info()["stats"]
    assert stats["states_running"] == 0


def test_constrained_answers_are_the_same_alone_and_beside_others(open_toy: Open) -> None:
    """A constraint forces tokens, which are computed as a chunk in the middle of an answer."""
    engine = open_toy("qwen3_next")
    regex = "(ab|ba)+-a fixed middle-[a-c]{3}"
    asked = SamplingParams(max_new_tokens=40, temperature=0, regex=regex)
    prompts = [list(text(20 + i, 12 + 7 * i)) for i in range(4)]
    together = [engine.submit(p, asked) for p in prompts]
    plainly = [engine.submit(p, GREEDY) for p in prompts]
    answers = [future.result(PATIENCE)[0] for future in together]
    assert all(a.text.startswith(("ab", "ba")) for a in answers)
    for future, prompt in zip(plainly, prompts, strict=True):
        assert list(future.result(PATIENCE)[0].token_ids) == alone("qwen3_next", tuple(prompt), 6)
    engine.flush_cache()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert engine.submit(prompt, asked).result(PATIENCE)[0].token_ids == answer.token_ids
    ended = [a.text for a in answers if a.finish_reason.type == "stop"]
    assert ended
    assert all(re.fullmatch(regex, said) for said in ended)


def test_a_state_that_does_not_fit_is_refused_before_anything_is_allocated(
    open_toy: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(capacity, "available_bytes", lambda: 20_000)
    monkeypatch.setattr(capacity, "KVPool", lambda *_: made.append("a pool"))
    monkeypatch.setattr(capacity, "StatePool", lambda *_: made.append("a pool"))
    with pytest.raises(MemoryLimitError, match=r"recurrent state of one sequence takes .* GiB"):
        open_toy("qwen3_next")
    assert not made


def test_a_prefetched_prompt_is_not_computed_again(open_toy: Open) -> None:
    engine, prompt = open_toy("qwen3_next"), "b" * 120
    resident = engine.prefetch((Text(prompt),)).result(PATIENCE)
    before = engine.get_server_info()["stats"]["computed_tokens"]
    assert resident == before >= 120
    for more in ("", "c"):
        engine.submit((Text(prompt + more),), GREEDY).result(PATIENCE)
    assert engine.get_server_info()["stats"]["computed_tokens"] - before <= 3


def test_the_server_info_tells_how_many_sequences_the_states_let_run(open_toy: Open) -> None:
    info = open_toy("qwen3_next", max_total_states=3, snapshots="every:16").get_server_info()
    assert info["max_running_requests"] == 3
    assert info["snapshots"] == "every:16"
    assert info["stats"]["states_free"] == 3


def test_a_program_goes_on_where_a_document_of_another_ended(open_toy: Open) -> None:
    """The pieces that a program appends are one text to the model, with known ends."""
    engine = open_toy("qwen3_next")
    documents = [chr(97 + i) * 90 for i in range(3)]

    @sgl.function
    def ask(s: sgl.ProgramState, first: int, second: int) -> None:
        s += "x" * 70
        s += documents[first]
        s += documents[second]
        s += "why?"
        s += sgl.gen("answer", max_tokens=3, temperature=0, ignore_eos=True)

    for pair, most in [((0, 1), 300), ((0, 2), 100), ((1, 2), 195)]:
        before = engine.get_server_info()["stats"]["computed_tokens"]
        ask.run(*pair, backend=engine)
        used = engine.get_server_info()["stats"]["computed_tokens"] - before
        assert used <= most, pair


def test_a_program_forks_and_selects_over_snapshots(open_toy: Open) -> None:
    engine = open_toy("qwen3_next")

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += "a" * 40
        forks = s.fork(3)
        for fork, word in zip(forks, "abc", strict=True):
            fork += word * 4
            fork += sgl.gen("said", max_tokens=4, temperature=0, ignore_eos=True)
        forks.join()
        s += sgl.select("chosen", choices=["ab", "ba", "bb"])

    ran = program.run(backend=engine)
    assert ran["chosen"] in ("ab", "ba", "bb")
    assert engine.get_server_info()["stats"]["snapshots_taken"] > 0
