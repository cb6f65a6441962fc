"""Nothing about a picture is done twice, and no two pictures are taken for one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import sleep
from typing import Any

import pytest

from sgl_mlx.benchmarks.micro.llava import fewest_tokens, questions
from sgl_mlx.core import Image, Prompt, Text
from sgl_mlx.errors import ImageError
from sgl_mlx.models.vision.image import open_image
from sgl_mlx.runtime.engine import Engine
from tests.patience import PATIENCE
from tests.runtime.llava import (
    FEATURES,
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


def test_eight_questions_about_one_picture_encode_and_prefill_it_once(open_llava: Open) -> None:
    engine = open_llava()
    prompts = [ask(1, f"{n} what?") for n in range(8)]
    found = run(engine, *prompts)
    after = stats(engine)
    assert after["encoded_images"] == after["encoder_passes"] == after["prepared_images"] == 1
    begin = len(engine.tokenizer.encode("Look at this picture: ")) + FEATURES + 1
    shared = begin  # the newline too
    total = [c.prompt_tokens for c in found]
    assert after["computed_tokens"] == shared + sum(n - shared for n in total)


def test_two_pictures_of_equal_size_never_share_a_slot(open_llava: Open) -> None:
    engine = open_llava()
    first, second = (run(engine, ask(n))[0] for n in (1, 2))
    before = len(engine.tokenizer.encode("Look at this picture: "))
    assert first.cached_tokens == 0
    assert second.cached_tokens == before
    assert tokens(first) != tokens(second)
    assert run(engine, ask(1))[0].cached_tokens == first.prompt_tokens - 1


def test_equal_pixels_are_one_picture_whatever_file_they_come_from(
    open_llava: Open, tmp_path: Path
) -> None:
    engine = open_llava()
    picture(1).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.bmp")
    sources = [tmp_path / "a.png", str(tmp_path / "b.bmp"), (tmp_path / "a.png").read_bytes()]
    for source in sources:
        run(engine, (Text("Look: "), Image(source), Text("?")))
    assert stats(engine)["encoded_images"] == 1


def test_the_questions_of_the_benchmark_hit_as_often_as_can_be(
    open_llava: Open, tmp_path: Path
) -> None:
    """LLaVA-Bench: 24 pictures, 60 questions in random order."""
    engine = open_llava(max_total_tokens=6000, max_running_requests=8)
    prompts = questions(tmp_path, 24)
    assert (len(prompts), len({prompt[1] for prompt in prompts})) == (60, 24)
    found = run(engine, *prompts)
    keys = [key_of(prompt, engine) for prompt in prompts]
    fewest = len({key[:end] for key in keys for end in range(1, len(key) + 1)})
    assert stats(engine)["computed_tokens"] == fewest_tokens(prompts, found, engine) == fewest
    assert stats(engine)["prompt_tokens"] == sum(map(len, keys))
    assert stats(engine)["encoded_images"] == stats(engine)["prepared_images"] == 24


def key_of(prompt: Prompt, engine: Engine) -> tuple[Any, ...]:
    before, shown, after = prompt
    assert isinstance(before, Text)
    assert isinstance(after, Text)
    first = engine.tokenizer.encode(before.text)
    rest = engine.tokenizer.encode(after.text, add_special=False)
    return (*first, *[shown] * FEATURES, *rest)


def test_threads_that_bring_one_picture_at_once_prepare_it_once(
    open_llava: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "late.png"
    file.write_bytes(b"not yet")
    engine, start = open_llava(), Barrier(8)

    def submit(number: int) -> Any:
        start.wait()
        return engine.submit((Text("Look: "), Image(file), Text(f"{number}?")), PARAMS)

    def open_slowly(*given: Any) -> Any:
        sleep(0.1)  # longer than the other threads need to come by
        return open_image(*given)

    monkeypatch.setattr("sgl_mlx.runtime.vision.pictures.open_image", open_slowly)
    with ThreadPoolExecutor(8) as pool:
        attempts = [pool.submit(submit, n) for n in range(8)]
        assert all(
            isinstance(attempt.result().exception(PATIENCE), ImageError) for attempt in attempts
        )
        picture(1).save(file)
        answers = [future.result() for future in pool.map(submit, range(8))]
    assert len(answers) == 8
    assert stats(engine)["prepared_images"] == stats(engine)["encoded_images"] == 1


def test_features_are_bounded_by_bytes(open_llava: Open, llava_folder: Folders) -> None:
    bytes_of_one = FEATURES * 32 * 4
    engine = open_llava(image_cache_bytes=2 * bytes_of_one + 100, chunked_prefill_size=20)
    prompts = [ask(n) for n in range(6)]
    plain = [reference(llava_folder("llava")).answer(prompt, 8) for prompt in prompts]
    assert [tokens(c) for c in run(engine, *prompts)] == plain
    assert 0 < stats(engine)["feature_bytes"] <= 2 * bytes_of_one + 100


def test_a_picture_larger_than_the_cache_is_still_encoded_once_for_its_chunks(
    open_llava: Open,
) -> None:
    engine = open_llava(image_cache_bytes=1, chunked_prefill_size=5)
    run(engine, ask(1))
    assert stats(engine)["encoded_images"] == 1
    assert stats(engine)["feature_bytes"] == 0


def test_pictures_come_back_from_disk_and_are_not_mixed_up(
    open_llava: Open, llava_folder: Folders, tmp_path: Path
) -> None:
    long = "x" * 200
    options = {"disk_cache_dir": str(tmp_path / "kv")}
    first = open_llava(**options)
    run(first, ask(1, long))
    first.shutdown()
    second = open_llava(**options)
    same, other = run(second, ask(1, long))[0], run(second, ask(2, long))[0]
    assert same.cached_tokens >= 192
    assert other.cached_tokens < 64
    plain = reference(llava_folder("llava"))
    assert tokens(same) == plain.answer(ask(1, long), 8)
    assert tokens(other) == plain.answer(ask(2, long), 8)
    assert stats(second)["encoded_images"] == 1  # the other picture


def test_an_evicted_picture_comes_back_from_disk_without_its_encoder(
    open_llava: Open, llava_folder: Folders, tmp_path: Path
) -> None:
    long = "x" * 200
    engine = open_llava(max_total_tokens=500, disk_cache_dir=str(tmp_path), image_cache_bytes=1)
    for number in (1, 2, 3):
        run(engine, ask(number, long))
    (again,) = run(engine, ask(1, long))
    assert stats(engine)["restored_tokens"] >= 128
    assert stats(engine)["encoded_images"] == 3
    assert tokens(again) == reference(llava_folder("llava")).answer(ask(1, long), 8)
