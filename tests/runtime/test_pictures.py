"""Pictures in prompts: they answer as without a runtime, and nothing about them is done twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from sgl_mlx.core import Completion, Image, Parallel, Part, SamplingParams, Text, Video
from sgl_mlx.errors import ImageError, PromptError, RequestAborted
from sgl_mlx.runtime.engine import Engine
from tests.runtime.llava import picture, reference, write_llava

NAMES = ["llava", "llava_siglip", "llava_next", "llava_onevision"]
FEATURES = 16
"""Tokens of a picture in the toy of LLaVA-1.5."""
PARAMS = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True, token_healing=False)

Open = Callable[..., Engine]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("llava")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_llava(root / name, name)
        return made[name]

    return folder


@pytest.fixture
def open_engine(folders: Callable[[str], Path]) -> Iterator[Open]:
    """`open_engine(name="llava", **options)`; shut down in the end."""
    engines: list[Engine] = []

    def make(name: str = "llava", **options: Any) -> Engine:
        engines.append(Engine(str(folders(name)), **{"max_total_tokens": 1000, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


def ask(number: int, question: str = "What is it?") -> tuple[Part, ...]:
    return (Text("Look at this picture: "), Image(picture(number)), Text("\n" + question))


def run(engine: Engine, *prompts: Sequence[Part], params: SamplingParams = PARAMS) -> list[Any]:
    futures = [engine.submit(tuple(prompt), params) for prompt in prompts]
    return [future.result()[0] for future in futures]


def tokens(completion: Completion) -> list[int]:
    return list(completion.token_ids)


def stats(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.get_server_info()["stats"]
    return found


# -- right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_answered_as_without_a_runtime(
    open_engine: Open, folders: Callable[[str], Path], name: str
) -> None:
    prompt = (Text("Look: "), Image(picture(1, 61, 33)), Text(" and say."))
    plain = reference(folders(name)).answer(prompt, 8)
    (found,) = run(open_engine(name), prompt)
    assert tokens(found) == plain


@pytest.mark.parametrize("name", NAMES)
def test_so_are_several_in_one_prompt(
    open_engine: Open, folders: Callable[[str], Path], name: str
) -> None:
    several = [Image(picture(i, *size)) for i, size in enumerate([(40, 60), (31, 31), (61, 33)])]
    prompt = (Text("a"), several[0], several[1], Text(" or "), several[2], Text("?"))
    plain = reference(folders(name)).answer(prompt, 8)
    (found,) = run(open_engine(name), prompt)
    assert tokens(found) == plain


def test_and_a_video(open_engine: Open, folders: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "film.gif"
    first, *others = [picture(i, 40, 60) for i in range(6)]
    first.save(file, save_all=True, append_images=others)
    prompt = (Text("Watch: "), Video(str(file), 3), Text(" and say."))
    plain = reference(folders("llava_onevision")).answer(prompt, 8)
    (found,) = run(open_engine("llava_onevision"), prompt)
    assert tokens(found) == plain


def test_a_prompt_may_begin_with_a_picture(
    open_engine: Open, folders: Callable[[str], Path]
) -> None:
    prompt = (Image(picture(1)), Text("What is it?"))
    plain = reference(folders("llava")).answer(prompt, 8)
    (found,) = run(open_engine(), prompt)
    assert tokens(found) == plain


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunks_that_cut_a_picture_change_nothing(
    open_engine: Open, folders: Callable[[str], Path], chunk: int
) -> None:
    engine = open_engine(chunked_prefill_size=chunk)
    prompts = [ask(1), ask(2)]
    plain = [reference(folders("llava")).answer(prompt, 8) for prompt in prompts]
    assert [tokens(found) for found in run(engine, *prompts)] == plain
    assert stats(engine)["encoded_images"] == 2


def test_a_preempted_request_answers_the_same(
    open_engine: Open, folders: Callable[[str], Path]
) -> None:
    params = SamplingParams(max_new_tokens=60, temperature=0, ignore_eos=True, token_healing=False)
    engine = open_engine(max_total_tokens=150)
    prompts = [ask(n) for n in range(3)]
    plain = [reference(folders("llava")).answer(prompt, 60) for prompt in prompts]
    assert [tokens(found) for found in run(engine, *prompts, params=params)] == plain
    assert stats(engine)["preemptions"] > 0


def test_logprobs_are_those_of_one_pass(open_engine: Open, folders: Callable[[str], Path]) -> None:
    engine = open_engine(chunked_prefill_size=10)
    params = SamplingParams(
        max_new_tokens=0, return_logprob=True, logprob_start_len=0, temperature=0
    )
    for _ in range(2):  # computed, then cached
        (found,) = run(engine, ask(1), params=params)
        scores = [score.logprob for score in found.logprobs.input]
        assert scores[0] is None
        assert scores[1:] == pytest.approx(reference(folders("llava")).logprobs(ask(1)), abs=1e-4)


def test_a_repetition_penalty_knows_a_pictures_tokens(open_engine: Open) -> None:
    params = SamplingParams(
        max_new_tokens=8, temperature=0, ignore_eos=True, repetition_penalty=1.3
    )
    (found,) = run(open_engine(), ask(1), params=params)
    assert len(found.token_ids) == 8


def test_branches_side_by_side_show_their_own(open_engine: Open) -> None:
    def prompt(*numbers: int) -> tuple[Part, ...]:
        branches = tuple(ask(n, "One:") for n in numbers)
        return (Text("Compare. "), Parallel(branches), Text("Which?"))

    plain = run(open_engine(disable_radix_cache=True), prompt(1, 2), prompt(1, 3))
    cached = open_engine()
    for found in (run(cached, prompt(1, 2), prompt(1, 3)), run(cached, prompt(1, 2), prompt(1, 3))):
        assert [tokens(one) for one in found] == [tokens(one) for one in plain]
    assert tokens(plain[0]) != tokens(plain[1])


def test_what_cannot_end_a_branch_is_said(open_engine: Open) -> None:
    prompt = (Text("a"), Parallel(((Image(picture(1)),), (Image(picture(2)),))))
    with pytest.raises(PromptError, match="add text after it"):
        run(open_engine(), prompt)


def test_choices_after_a_picture_are_scored(
    open_engine: Open, folders: Callable[[str], Path]
) -> None:
    found = open_engine().score(ask(1), ["cat", "dog"]).result()
    for choice in found.choices:
        whole = (*ask(1)[:2], Text("\nWhat is it?" + choice.text))
        plain = reference(folders("llava")).logprobs(whole)[-3:]
        assert [t.logprob for t in choice.tokens] == pytest.approx(plain, abs=1e-4)


def test_people_say_where_pictures_stand(open_engine: Open, folders: Callable[[str], Path]) -> None:
    engine = open_engine()
    plain = [reference(folders("llava")).answer(ask(n), 8) for n in (1, 2)]
    text = "Look at this picture: <image>\nWhat is it?"
    options = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True, "token_healing": False}
    one = engine.generate(text, options, image_data=picture(1))
    assert one["output_ids"] == plain[0]
    both = engine.generate([text, text], options, image_data=[[picture(1)], picture(2)])
    assert [found["output_ids"] for found in both] == plain


@pytest.mark.parametrize(
    ("prompt", "images", "complaint"),
    [
        ("no place", [1], "has 0 <image>, and there are 1 pictures"),
        (["<image>", "<image>"], [1], "one entry for each of 2 prompts"),
        (None, [1], "needs a prompt of text"),
    ],
)
def test_pictures_and_places_that_do_not_match_are_refused(
    open_engine: Open, prompt: Any, images: list[int], complaint: str
) -> None:
    ids = [5] if prompt is None else None
    with pytest.raises(PromptError, match=complaint):
        open_engine().generate(prompt, input_ids=ids, image_data=[picture(n) for n in images])


# -- once -----------------------------------------------------------------------------------------


def test_eight_questions_about_one_picture_encode_and_prefill_it_once(open_engine: Open) -> None:
    engine = open_engine()
    prompts = [ask(1, f"{n} what?") for n in range(8)]
    found = run(engine, *prompts)
    after = stats(engine)
    assert after["encoded_images"] == after["encoder_passes"] == after["prepared_images"] == 1
    begin = len(engine.tokenizer.encode("Look at this picture: ")) + FEATURES + 1
    shared = begin  # the newline too
    total = [c.prompt_tokens for c in found]
    assert after["computed_tokens"] == shared + sum(n - shared for n in total)


def test_two_pictures_of_equal_size_never_share_a_slot(open_engine: Open) -> None:
    engine = open_engine()
    first, second = (run(engine, ask(n))[0] for n in (1, 2))
    before = len(engine.tokenizer.encode("Look at this picture: "))
    assert first.cached_tokens == 0
    assert second.cached_tokens == before
    assert tokens(first) != tokens(second)
    assert run(engine, ask(1))[0].cached_tokens == first.prompt_tokens - 1


def test_equal_pixels_are_one_picture_whatever_file_they_come_from(
    open_engine: Open, tmp_path: Path
) -> None:
    engine = open_engine()
    picture(1).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.bmp")
    sources = [tmp_path / "a.png", str(tmp_path / "b.bmp"), (tmp_path / "a.png").read_bytes()]
    for source in sources:
        run(engine, (Text("Look: "), Image(source), Text("?")))
    assert stats(engine)["encoded_images"] == 1


def test_a_shuffled_benchmark_hits_as_often_as_can_be(open_engine: Open) -> None:
    """LLaVA-Bench: 24 pictures, one to five questions each, 60 in all."""
    engine = open_engine(max_total_tokens=6000, max_running_requests=8)
    draw = random.Random(0)
    counts = [1, 2, 3, 4] * 6
    prompts = [ask(p, f"{q} of the picture?") for p, n in enumerate(counts) for q in range(n)]
    assert len(prompts) == 60
    draw.shuffle(prompts)
    found = run(engine, *prompts)
    before = len(engine.tokenizer.encode("Look at this picture: "))
    alone = sum(c.prompt_tokens - before - FEATURES - 1 for c in found)
    assert stats(engine)["computed_tokens"] == before + 24 * (FEATURES + 1) + alone
    assert stats(engine)["encoded_images"] == stats(engine)["prepared_images"] == 24


def test_features_are_bounded_by_bytes(open_engine: Open, folders: Callable[[str], Path]) -> None:
    bytes_of_one = FEATURES * 32 * 4
    engine = open_engine(image_cache_bytes=2 * bytes_of_one + 100, chunked_prefill_size=20)
    prompts = [ask(n) for n in range(6)]
    plain = [reference(folders("llava")).answer(prompt, 8) for prompt in prompts]
    assert [tokens(c) for c in run(engine, *prompts)] == plain
    assert 0 < stats(engine)["feature_bytes"] <= 2 * bytes_of_one + 100


def test_a_picture_larger_than_the_cache_is_still_encoded_once_for_its_chunks(
    open_engine: Open,
) -> None:
    engine = open_engine(image_cache_bytes=1, chunked_prefill_size=5)
    run(engine, ask(1))
    assert stats(engine)["encoded_images"] == 1
    assert stats(engine)["feature_bytes"] == 0


def test_pictures_come_back_from_disk_and_are_not_mixed_up(
    open_engine: Open, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    long = "x" * 200
    options = {"disk_cache_dir": str(tmp_path / "kv")}
    first = open_engine(**options)
    run(first, ask(1, long))
    first.shutdown()
    second = open_engine(**options)
    same, other = run(second, ask(1, long))[0], run(second, ask(2, long))[0]
    assert same.cached_tokens >= 192
    assert other.cached_tokens < 64
    plain = reference(folders("llava"))
    assert tokens(same) == plain.answer(ask(1, long), 8)
    assert tokens(other) == plain.answer(ask(2, long), 8)
    assert stats(second)["encoded_images"] == 1  # of the other


# -- wrong ----------------------------------------------------------------------------------------


def test_a_model_of_text_alone_refuses_pictures_and_goes_on(toy: Engine) -> None:
    with pytest.raises(PromptError, match=r"takes no pictures.*mmproj"):
        run(toy, ask(1))
    assert run(toy, (Text("hello"),))


def test_a_model_without_video_says_so(open_engine: Open, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no videos"):
        run(open_engine(), (Text("a"), Video(str(tmp_path / "film.gif"), 2), Text("b")))


def test_a_broken_picture_harms_nobody_else(
    open_engine: Open, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = open_engine()
    good = engine.submit(ask(1), PARAMS)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for source in (tmp_path / "cut.png", tmp_path / "none.png", b"", Pillow.new("RGB", (0, 0))):
        with pytest.raises(ImageError):
            engine.submit((Text("a"), Image(source), Text("b")), PARAMS)
    assert list(good.result()[0].token_ids) == reference(folders("llava")).answer(ask(1), 8)


def test_an_aborted_request_leaves_the_others_and_all_slots(
    open_engine: Open, folders: Callable[[str], Path]
) -> None:
    engine = open_engine(chunked_prefill_size=5)
    params = SamplingParams(max_new_tokens=300, temperature=0, ignore_eos=True)
    doomed, good = engine.submit(ask(1), params), engine.submit(ask(1, "And?"), PARAMS)
    doomed.cancel()
    assert list(good.result()[0].token_ids) == reference(folders("llava")).answer(ask(1, "And?"), 8)
    while stats(engine)["running"] or stats(engine)["waiting"]:
        pass
    after = stats(engine)
    assert after["free_slots"] + after["cached_slots"] == 1000


def test_a_step_that_fails_is_an_error_of_its_requests(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    features = engine._model.runner.features
    assert features is not None

    def fail(images: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(features._vision, "encode", fail)
        with pytest.raises(RequestAborted, match="no room"):
            run(engine, ask(1))
    assert run(engine, ask(1))
