"""Requests of an engine: their ids, events and ends, and values that harm no neighbour."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgl_mlx.core import Completion, PartialCompletion, SamplingParams, StreamEvent, Text
from sgl_mlx.errors import (
    EngineStoppedError,
    InvalidParamsError,
    ProgramError,
    PromptError,
    RequestAborted,
    SglError,
)
from sgl_mlx.models.loader import load
from sgl_mlx.runtime.constraints.vocabulary import GrammarVocabulary
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.patience import PATIENCE
from tests.runtime.checks import assert_holds_nothing
from tests.test_sampling import NAMES, VALUES

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6}
LONG: dict[str, Any] = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
PROMPT = (Text("ab a"),)


# -- events -----------------------------------------------------------------------------------


def test_the_events_of_every_sample_add_up_to_its_completion(toy: Engine) -> None:
    params = SamplingParams(
        n=3, max_new_tokens=9, seed=5, return_logprob=True, logprob_start_len=0, top_logprobs_num=2
    )
    events: list[StreamEvent] = []
    toy.flush_cache()
    whole = toy.submit(PROMPT, params, events.append).result(PATIENCE)
    samples = [PartialCompletion() for _ in range(3)]
    for event in events:
        assert samples[event.sample].finish_reason is None
        samples[event.sample].add(event)
    assert [s.to_dict() for s in samples] == [c.to_dict() for c in whole]


def test_a_stream_of_several_samples_says_which_has_grown(toy: Engine) -> None:
    params = {"n": 3, "max_new_tokens": 8, "seed": 1}
    whole: Any = toy.generate("ab", params, rid="r")
    last: dict[int, Any] = {}
    for chunk in toy.generate("ab", params, stream=True, rid="r"):
        index = chunk.pop("index")
        assert chunk["text"].startswith(last[index]["text"] if index in last else "")
        assert chunk["meta_info"]["completion_tokens"] == len(chunk["output_ids"])
        last[index] = chunk
    for i, answer in enumerate(whole):
        for one in (answer, last[i]):  # the second time finds more in the cache
            for name in ("cached_tokens", "drafted_tokens", "accepted_tokens"):
                one["meta_info"].pop(name, None)
        assert last[i] == answer


def test_every_chunk_has_meta_information(toy: Engine) -> None:
    chunks = list(toy.generate("ab a", GREEDY, stream=True))
    assert all(set(chunk) == {"text", "output_ids", "meta_info"} for chunk in chunks)
    counts = [chunk["meta_info"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert [c["meta_info"]["prompt_tokens"] for c in chunks] == [
        len(toy.tokenizer.encode("ab a"))
    ] * len(chunks)


# -- ids --------------------------------------------------------------------------------------


def test_a_request_has_the_id_it_was_given(toy: Engine) -> None:
    assert toy.generate("ab", GREEDY, rid="mine")["meta_info"]["id"] == "mine"
    many: Any = toy.generate(["ab", "x"], GREEDY, rid=["a", "b"])
    assert [answer["meta_info"]["id"] for answer in many] == ["a", "b"]
    several: Any = toy.generate("ab", GREEDY, rid="s", n=2)
    assert [answer["meta_info"]["id"] for answer in several] == ["s-0", "s-1"]
    assert toy.generate("ab", GREEDY, rid="mine")["meta_info"]["id"] == "mine"  # not in flight


def test_an_id_in_flight_is_refused_and_free_again_after_the_end(toy: Engine) -> None:
    first = toy.submit(PROMPT, SamplingParams.of(LONG), rid="same")
    with pytest.raises(InvalidParamsError, match="rid 'same' is in flight already"):
        toy.submit(PROMPT, SamplingParams.of(GREEDY), rid="same")
    with pytest.raises(InvalidParamsError, match="'twice' is in flight"):
        toy.generate(["a", "b"], GREEDY, rid=["twice", "twice"])
    assert first.cancel()
    assert toy.submit(PROMPT, SamplingParams.of(GREEDY), rid="same").result(PATIENCE)
    assert_holds_nothing(toy)


@pytest.mark.parametrize("given", [5, "", ["a"], {"a": 1}])
def test_an_id_of_the_wrong_kind_is_refused(toy: Engine, given: Any) -> None:
    with pytest.raises(InvalidParamsError, match=r"rid must be a (non-empty )?text"):
        toy.generate("ab", GREEDY, rid=given)
    with pytest.raises(InvalidParamsError, match="rid must be a list of 2 texts"):
        toy.generate(["ab", "c"], GREEDY, rid=given)


def test_a_request_is_aborted_by_its_id(toy: Engine) -> None:
    heard = threading.Event()
    running = toy.submit(PROMPT, SamplingParams.of(LONG), lambda _: heard.set(), rid="victim")
    assert heard.wait(PATIENCE)
    assert toy.abort("victim")
    with pytest.raises(RequestAborted, match="'victim' was aborted"):
        running.result(PATIENCE)
    assert not toy.abort("victim")
    assert_holds_nothing(toy)


def test_priority_and_deadline_reach_the_scheduler(
    toy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Sequence] = []
    add = Scheduler.add

    def watch(self: Scheduler, s: Sequence) -> None:
        added.append(s)
        add(self, s)

    monkeypatch.setattr(Scheduler, "add", watch)
    before = time.monotonic()
    toy.generate("ab", GREEDY, priority=3, timeout=PATIENCE)
    toy.submit(PROMPT, SamplingParams.of(GREEDY), deadline=before + PATIENCE).result(PATIENCE)
    first, second = added
    assert (first.priority, second.priority) == (3, 0)
    assert first.deadline is not None
    assert before + PATIENCE <= first.deadline <= time.monotonic() + PATIENCE
    assert second.deadline == before + PATIENCE


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"priority": "high"}, "priority must be an integer"),
        ({"priority": 2**40}, "priority must be an integer"),
        ({"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
        ({"timeout": float("nan")}, "timeout must be a positive number"),
        ({"deadline": "soon"}, "deadline must be a positive number"),
        ({"timeout": 1, "deadline": 1}, "exclude each other"),
    ],
)
def test_keywords_out_of_range_are_refused(
    toy: Engine, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        toy.generate("ab", GREEDY, **keywords)


# -- calls that could never be answered -------------------------------------------------------


def test_generate_inside_a_callback_is_an_error_at_once(toy: Engine) -> None:
    def ask(_: StreamEvent) -> None:
        toy.generate("b", GREEDY)

    with pytest.raises(ProgramError, match=r"by a callback of the same engine"):
        toy.submit(PROMPT, SamplingParams.of(GREEDY), ask).result(PATIENCE)
    with pytest.raises(ProgramError, match=r"by a callback"):
        toy.run_on_model(lambda _: toy.generate("b", GREEDY))
    assert toy.run_on_model(lambda _: toy.get_server_info())["model_path"]


def test_a_callback_may_submit(toy: Engine) -> None:
    answered: list[Completion] = []
    done = threading.Event()

    def go_on(_: object) -> None:
        second = toy.submit((Text("b"),), SamplingParams.of(GREEDY))
        second.add_done_callback(lambda f: (answered.extend(f.result()), done.set()))

    toy.submit(PROMPT, SamplingParams.of(GREEDY)).add_done_callback(go_on)
    assert done.wait(PATIENCE)
    assert answered[0].text == toy.generate("b", GREEDY)["text"]


def test_a_forked_process_is_told_to_make_its_own_engine(
    toy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)  # to fork with MLX loaded is another matter
    for call in (
        lambda: toy.generate("ab", GREEDY),
        lambda: toy.submit(PROMPT, SamplingParams()),
        lambda: toy.score(PROMPT, ["a"]),
        lambda: toy.prefill(PROMPT),
        toy.get_server_info,
        toy.flush_cache,
        lambda: asyncio.run(toy.async_generate("ab", GREEDY)),
    ):
        with pytest.raises(EngineStoppedError, match="forked"):
            call()
    assert toy.prefetch(PROMPT).result(0) == 0


def test_shutdown_fails_what_is_still_being_prepared(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(context_length=400_000)
    futures = [engine.submit((Text("ab " * 100_000),), SamplingParams()) for _ in range(4)]
    engine.shutdown()
    for future in futures:
        assert isinstance(future.exception(PATIENCE), SglError)


# -- an engine around a loaded model ----------------------------------------------------------


def test_an_engine_runs_a_model_that_is_loaded_already(toy: Engine, toy_folder: Path) -> None:
    loaded = load(str(toy_folder))
    for _ in range(2):
        with Engine(model=loaded, max_total_tokens=2000) as engine:
            assert engine.generate("ab a", GREEDY)["text"] == toy.generate("ab a", GREEDY)["text"]
            assert engine.model_name == loaded.name
    with pytest.raises(InvalidParamsError, match="either model_path or model"):
        Engine("toy", model=loaded)


def test_opening_an_engine_does_not_wait_for_the_vocabulary_of_its_grammars(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, made = threading.Event(), GrammarVocabulary.__init__

    def slow(self: GrammarVocabulary, *args: Any) -> None:
        assert go_on.wait(PATIENCE)
        made(self, *args)

    monkeypatch.setattr(GrammarVocabulary, "__init__", slow)
    engine = make_engine()
    assert engine.generate("ab a", GREEDY)["output_ids"]
    constrained = engine.submit(PROMPT, SamplingParams(regex="[ab]{3}"))
    with pytest.raises(TimeoutError):
        constrained.result(0.2)
    go_on.set()
    assert len(constrained.result(PATIENCE)[0].text) == 3


# -- values that harm no neighbour ------------------------------------------------------------


def submitted(engine: Engine, name: str, value: Any) -> Future[Any] | SglError:
    """The future of a short request with one value, or the error that refuses it."""
    usual = {"max_new_tokens": 2, "seed": 7, "temperature": 0.8}
    try:
        return engine.submit(PROMPT, SamplingParams.of({**usual, name: value}), timeout=PATIENCE)
    except (InvalidParamsError, PromptError) as error:
        return error


def outcome(answer: Future[Any] | SglError) -> Any:
    """Tokens and text of each sample, or the kind of the error."""
    if isinstance(answer, SglError):
        return type(answer)
    try:
        return [(c.token_ids, c.text) for c in answer.result(PATIENCE)]
    except (InvalidParamsError, PromptError) as error:
        return type(error)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_a_parameter_harms_a_neighbour(toy: Engine, name: str) -> None:
    usual = SamplingParams.of(LONG)
    alone = toy.submit((Text("b a"),), usual).result(PATIENCE)[0].token_ids
    running, done = threading.Event(), threading.Event()
    neighbour = toy.submit((Text("b a"),), usual, lambda _: running.set())
    neighbour.add_done_callback(lambda _: done.set())
    assert running.wait(PATIENCE)
    beside = [submitted(toy, name, value) for value in VALUES]
    assert not done.is_set()
    found = [outcome(answer) for answer in beside]
    assert neighbour.result(PATIENCE)[0].token_ids == alone
    for value, seen in zip(VALUES, found, strict=True):
        if isinstance(seen, list) and (name, value) != ("seed", None):
            assert outcome(submitted(toy, name, value)) == seen, value


def test_a_stop_pattern_that_backtracks_without_end_ends_its_own_request_only(toy: Engine) -> None:
    alone = toy.generate("b a", LONG, max_new_tokens=60)["output_ids"]
    neighbour = toy.submit((Text("b a"),), SamplingParams.of({**LONG, "max_new_tokens": 60}))
    only_a = {toy.tokenizer.encode("a")[-1]: 1e9}
    bad = SamplingParams.of({**LONG, "stop_regex": r"(a|aa)+$b", "logit_bias": only_a})
    with pytest.raises(RequestAborted, match=r"stop_regex '\(a\|aa\)\+\$b' takes too long"):
        toy.submit(PROMPT, bad).result(PATIENCE)
    assert list(neighbour.result(PATIENCE)[0].token_ids) == alone


def test_token_ids_of_numpy_are_taken(toy: Engine) -> None:
    ids = np.array(toy.tokenizer.encode("ab a"))
    right = toy.generate("ab a", GREEDY)["output_ids"]
    for given in (ids, list(ids), [ids]):
        found: Any = toy.generate(input_ids=given, sampling_params=GREEDY)
        assert (found[0] if isinstance(found, list) else found)["output_ids"] == right


def test_cancelling_while_a_prompt_is_prepared_leaves_nothing(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(context_length=400_000)
    futures = [engine.submit((Text("ab " * 50_000),), SamplingParams()) for _ in range(6)]
    assert all(future.cancel() for future in futures)
    with pytest.raises(CancelledError):
        futures[0].result(0)
    assert_holds_nothing(engine)
