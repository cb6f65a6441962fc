"""Pictures in programs on a toy LLaVA: forks, copies, joins and batches show each its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Image, Text
from sgl_mlx.errors import ImageError
from tests.runtime.llava import FEATURES, Folders, Open, ask, picture, reference, stats

BEFORE = "Look at this picture: "
GREEDY = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "token_healing": False}


@sgl.function
def about(s: Any, shown: Any, question: str) -> None:
    s += BEFORE + sgl.image(shown) + "\n" + question
    s += sgl.gen("answer", **GREEDY)


@sgl.function
def forked(s: Any, mode: str) -> None:
    s += BEFORE + sgl.image(picture(1)) + "\n"
    forks = s.fork(2)
    forks[0] += "What is it?" + sgl.gen("seen", **GREEDY)
    forks[1] += "And this: " + sgl.image(picture(2)) + "?" + sgl.gen("seen", **GREEDY)
    forks.join(mode)
    s += " So?" + sgl.gen("whole", **GREEDY)


def written(folder: Path, *parts: Any) -> str:
    """Continue a prompt that is computed in one pass."""
    plain = reference(folder)
    return plain.loaded.tokenizer.decode(plain.answer(parts, 8), at_start=False)


def test_forks_answer_as_they_would_alone(open_llava: Open, llava_folder: Folders) -> None:
    engine, folder = open_llava(), llava_folder("llava")
    state = forked.run(mode="gather_variable", backend=engine)
    both = (*ask(1, "And this: "), Image(picture(2)), Text("?"))
    assert state["seen"] == [written(folder, *ask(1)), written(folder, *both)]
    assert state["whole"] == written(folder, *ask(1, " So?"))
    assert stats(engine)["encoded_images"] == 2


def test_a_join_of_branches_with_pictures_computes_none_of_them_again(open_llava: Open) -> None:
    options = {"mode": "concate_and_append"}
    plain = forked.run(backend=open_llava(disable_radix_cache=True), **options).text()
    engine = open_llava()
    assert forked.run(backend=engine, **options).text() == plain
    texts = [BEFORE, "\n", "What is it?", "And this: ", "?", " So?"]
    once = 2 * FEATURES + sum(len(engine.tokenizer.encode(t, add_special=False)) for t in texts)
    # the first token of all, and each branch's last generated one, which had no KV yet
    assert stats(engine)["computed_tokens"] <= once + 1 + 2
    assert stats(engine)["encoded_images"] == 2
    assert forked.run(mode="gather_variable", backend=engine).text() != plain


def test_a_copy_goes_its_own_way(open_llava: Open, llava_folder: Folders) -> None:
    @sgl.function
    def copied(s: Any) -> None:
        s += BEFORE + sgl.image(picture(1)) + "\n"
        with s.copy() as other:
            other += "And this: " + sgl.image(picture(2)) + "?"
            other += sgl.gen("other", **GREEDY)
            s.set_var("other", other["other"])
        s += "What is it?" + sgl.gen("own", **GREEDY)

    folder = llava_folder("llava")
    state = copied.run(backend=open_llava())
    both = (*ask(1, "And this: "), Image(picture(2)), Text("?"))
    assert state["own"] == written(folder, *ask(1))
    assert state["other"] == written(folder, *both)


def test_of_a_batch_only_the_row_with_the_broken_picture_fails(
    open_llava: Open, llava_folder: Folders, tmp_path: Path
) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shown = [picture(0), tmp_path / "cut.png", picture(2), tmp_path / "none.png"]
    rows = [{"shown": source, "question": "What is it?"} for source in shown]
    states = list(about.run_batch(rows, backend=open_llava()))
    for n in (0, 2):
        assert states[n]["answer"] == written(llava_folder("llava"), *ask(n))
    for n, complaint in ((1, r"cut\.png"), (3, r"none\.png.*does not exist")):
        assert isinstance(states[n].error(), ImageError)
        with pytest.raises(ImageError, match=complaint):
            states[n]["answer"]


def test_a_batch_of_questions_about_one_file_opens_encodes_and_prefills_it_once(
    open_llava: Open, tmp_path: Path
) -> None:
    picture(1).save(tmp_path / "cat.png")
    rows = [{"shown": tmp_path / "cat.png", "question": f"{n} what?"} for n in range(8)]
    engine = open_llava()
    states = about.run_batch(rows, backend=engine, num_threads=8)
    assert len([state["answer"] for state in states]) == 8
    after = stats(engine)
    assert after["prepared_images"] == after["encoded_images"] == after["encoder_passes"] == 1
    shared = len(engine.tokenizer.encode(BEFORE)) + FEATURES + 1
    assert after["computed_tokens"] == after["prompt_tokens"] - 7 * shared
