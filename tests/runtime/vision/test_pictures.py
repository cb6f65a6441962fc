"""Pictures in prompts answer as without a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.core import Image, Parallel, Part, SamplingParams, Text, Video
from sgl_mlx.errors import PromptError
from tests.models.vision.conftest import NAMES
from tests.runtime.llava import (
    PARAMS,
    Folders,
    Open,
    ask,
    picture,
    reference,
    run,
    stats,
    tokens,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_answered_as_without_a_runtime(
    open_llava: Open, llava_folder: Folders, name: str
) -> None:
    prompt = (Text("Look: "), Image(picture(1, 61, 33)), Text(" and say."))
    plain = reference(llava_folder(name)).answer(prompt, 8)
    (found,) = run(open_llava(name), prompt)
    assert tokens(found) == plain


@pytest.mark.parametrize("name", NAMES)
def test_so_are_several_in_one_prompt(open_llava: Open, llava_folder: Folders, name: str) -> None:
    several = [Image(picture(i, *size)) for i, size in enumerate([(40, 60), (31, 31), (61, 33)])]
    prompt = (Text("a"), several[0], several[1], Text(" or "), several[2], Text("?"))
    plain = reference(llava_folder(name)).answer(prompt, 8)
    (found,) = run(open_llava(name), prompt)
    assert tokens(found) == plain


def test_and_a_video(open_llava: Open, llava_folder: Folders, tmp_path: Path) -> None:
    file = tmp_path / "film.gif"
    first, *others = [picture(i, 40, 60) for i in range(6)]
    first.save(file, save_all=True, append_images=others)
    prompt = (Text("Watch: "), Video(str(file), 3), Text(" and say."))
    plain = reference(llava_folder("llava_onevision")).answer(prompt, 8)
    (found,) = run(open_llava("llava_onevision"), prompt)
    assert tokens(found) == plain


def test_a_prompt_may_begin_with_a_picture(open_llava: Open, llava_folder: Folders) -> None:
    prompt = (Image(picture(1)), Text("What is it?"))
    plain = reference(llava_folder("llava")).answer(prompt, 8)
    (found,) = run(open_llava(), prompt)
    assert tokens(found) == plain


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunks_that_cut_a_picture_change_nothing(
    open_llava: Open, llava_folder: Folders, chunk: int
) -> None:
    engine = open_llava(chunked_prefill_size=chunk)
    prompts = [ask(1), ask(2)]
    plain = [reference(llava_folder("llava")).answer(prompt, 8) for prompt in prompts]
    assert [tokens(found) for found in run(engine, *prompts)] == plain
    assert stats(engine)["encoded_images"] == 2


@pytest.mark.parametrize("chunk", [512, 7])
def test_a_preempted_request_answers_the_same(
    open_llava: Open, llava_folder: Folders, chunk: int
) -> None:
    params = PARAMS.override(max_new_tokens=60)
    engine = open_llava(max_total_tokens=150, chunked_prefill_size=chunk)
    prompts = [ask(n) for n in range(3)]
    plain = [reference(llava_folder("llava")).answer(prompt, 60) for prompt in prompts]
    assert [tokens(found) for found in run(engine, *prompts, params=params)] == plain
    assert stats(engine)["preemptions"] > 0


def test_logprobs_are_those_of_one_pass(open_llava: Open, llava_folder: Folders) -> None:
    engine = open_llava(chunked_prefill_size=10)
    params = SamplingParams(
        max_new_tokens=0, return_logprob=True, logprob_start_len=0, temperature=0
    )
    plain = reference(llava_folder("llava")).logprobs(ask(1))
    for _ in range(2):  # computed, then cached
        (found,) = run(engine, ask(1), params=params)
        scores = [score.logprob for score in found.logprobs.input]
        assert scores[0] is None
        assert scores[1:] == pytest.approx(plain, abs=1e-4)


def test_a_repetition_penalty_knows_a_pictures_tokens(open_llava: Open) -> None:
    params = SamplingParams(
        max_new_tokens=8, temperature=0, ignore_eos=True, repetition_penalty=1.3
    )
    (found,) = run(open_llava(), ask(1), params=params)
    assert len(found.token_ids) == 8


def test_branches_side_by_side_show_their_own(open_llava: Open) -> None:
    def prompt(*numbers: int) -> tuple[Part, ...]:
        branches = tuple(ask(n, "One:") for n in numbers)
        return (Text("Compare. "), Parallel(branches), Text("Which?"))

    plain = run(open_llava(disable_radix_cache=True), prompt(1, 2), prompt(1, 3))
    cached = open_llava()
    for found in (run(cached, prompt(1, 2), prompt(1, 3)), run(cached, prompt(1, 2), prompt(1, 3))):
        assert [tokens(one) for one in found] == [tokens(one) for one in plain]
    assert tokens(plain[0]) != tokens(plain[1])


def test_what_cannot_end_a_branch_is_said(open_llava: Open) -> None:
    prompt = (Text("a"), Parallel(((Image(picture(1)),), (Image(picture(2)),))))
    with pytest.raises(PromptError, match="add text after it"):
        run(open_llava(), prompt)


def test_choices_after_a_picture_are_scored(open_llava: Open, llava_folder: Folders) -> None:
    found = open_llava().score(ask(1), ["cat", "dog"]).result()
    for choice in found.choices:
        whole = (*ask(1)[:2], Text("\nWhat is it?" + choice.text))
        plain = reference(llava_folder("llava")).logprobs(whole)[-3:]
        assert [t.logprob for t in choice.tokens] == pytest.approx(plain, abs=1e-4)


def test_people_say_where_pictures_stand(open_llava: Open, llava_folder: Folders) -> None:
    engine = open_llava()
    plain = [reference(llava_folder("llava")).answer(ask(n), 8) for n in (1, 2)]
    text = "Look at this picture: <image>\nWhat is it?"
    options = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True, "token_healing": False}
    one = engine.generate(text, options, image_data=picture(1))
    assert one["output_ids"] == plain[0]
    both = engine.generate([text, text], options, image_data=[[picture(1)], picture(2)])
    assert [found["output_ids"] for found in both] == plain


@pytest.mark.parametrize(
    ("prompt", "images", "complaint"),
    [
        ("no place", [1], "says <image> 0 times, and there are 1 pictures"),
        (["<image>", "<image>"], [1], "one entry for each of 2 prompts"),
        (None, [1], "needs a prompt of text"),
    ],
)
def test_pictures_and_places_that_do_not_match_are_refused(
    open_llava: Open, prompt: Any, images: list[int], complaint: str
) -> None:
    ids = [5] if prompt is None else None
    with pytest.raises(PromptError, match=complaint):
        open_llava().generate(prompt, input_ids=ids, image_data=[picture(n) for n in images])
