"""Programs, chats, HTTP and the command line show a Qwen model the same prompt with a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from PIL import Image as Pillow

import sgl_mlx as sgl
from sgl_mlx.cli.commands import main
from sgl_mlx.core import SamplingParams, Text, Video
from sgl_mlx.models.loader import load
from sgl_mlx.models.vision.video import read_clip
from sgl_mlx.runtime.engine import Engine
from tests.models.vision.clips import write_film
from tests.models.vision.pictures import film, picture
from tests.runtime.qwen import stats, write_speaking
from tests.server.conftest import client, serve

__all__ = ["client", "serve"]

GREEDY = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True, "token_healing": False}
CALLED = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "token_healing": False}
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking(tmp_path_factory.mktemp("speaking") / "qwen", "qwen3_vl")


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder), max_total_tokens=1000) as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shown.png"
    picture(40, 60).save(path)
    return path


@sgl.function
def about(s: Any, shown: Any) -> None:
    s += sgl.user(sgl.image(shown) + "\n" + QUESTION)
    s += sgl.assistant(sgl.gen("answer", **CALLED))


@sgl.function
def compared(s: Any, shown: Any) -> None:
    s += sgl.user(sgl.image(shown) + "\n" + QUESTION)
    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += sgl.assistant(f"{i}: " + sgl.gen("answer", **CALLED))
    s["answers"] = [fork["answer"] for fork in forks]


def written(engine: Engine, shown: Any, opening: str = "") -> dict[str, Any]:
    """The answer to the prompt as the chat template writes it, with the marks in its text."""
    content = [{"type": "image"}, {"type": "text", "text": "\n" + QUESTION}]
    prompt = engine.render_chat([{"role": "user", "content": content}], add_generation_prompt=True)
    assert "<|vision_start|><|image_pad|><|vision_end|>\nWhat" in prompt
    found: Any = engine.generate(prompt + opening, GREEDY, image_data=shown)
    return dict(found)


def test_a_program_shows_what_the_chat_template_writes(engine: Engine, file: Path) -> None:
    expected = written(engine, str(file))
    state = about.run(shown=str(file), backend=engine)
    assert state["answer"] == expected["text"]
    info = state.get_meta_info("answer")
    assert info["prompt_tokens"] == expected["meta_info"]["prompt_tokens"]
    assert info["cached_tokens"] == info["prompt_tokens"] - 1


def test_forks_of_a_program_share_the_picture(engine: Engine, file: Path) -> None:
    state = compared.run(shown=str(file), backend=engine)
    assert stats(engine)["encoded_images"] == 1
    engine.flush_cache()
    alone = [written(engine, str(file), f"{i}: ")["text"] for i in range(3)]
    assert state["answers"] == alone


def test_a_chat_over_http_shows_the_same(
    engine: Engine, serve: Any, client: httpx.Client, file: Path
) -> None:
    expected = written(engine, str(file))
    url = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    shown = {"type": "image_url", "image_url": {"url": url}}
    message = {"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}
    body = {"messages": [message], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    address = serve(engine)
    answer = client.post(f"{address}/v1/chat/completions", json=body).json()
    assert answer["usage"]["prompt_tokens"] == expected["meta_info"]["prompt_tokens"]
    assert answer["choices"][0]["message"]["content"] == expected["text"]
    for mark in ("<image>", "<|vision_start|><|image_pad|><|vision_end|>"):
        text = f"<|im_start|>user\n{mark}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        native = {"text": text, "image_data": url, "sampling_params": GREEDY}
        assert client.post(f"{address}/generate", json=native).json()["text"] == expected["text"]


def test_the_command_line_shows_the_same(engine: Engine, folder: Path, file: Path) -> None:
    expected = written(engine, str(file))["text"]
    options = ["--model", str(folder), "--image", str(file), "--temperature", "0"]
    options += ["--max-tokens", "6", "--ignore-eos", QUESTION]
    result = CliRunner().invoke(main, ["generate", *options], prog_name="sgl-mlx")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip("\n") == expected.strip("\n")


def test_pictures_of_any_mode_are_shown(engine: Engine) -> None:
    grey = picture(40, 60).convert("L")
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    given: list[Any] = [grey, buffer.getvalue(), Pillow.merge("RGB", [grey] * 3)]
    answers = {str(written(engine, shown)["text"]) for shown in given}
    assert len(answers) == 1
    assert stats(engine)["encoded_images"] == 1


def test_a_chat_shows_a_video_after_its_times(engine: Engine, tmp_path: Path) -> None:
    """The tokens around the video are those of the whole text, times and marks included."""

    @sgl.function
    def watch(s: Any, path: str) -> None:
        s += sgl.user(sgl.video(path, 4) + "\n" + QUESTION)
        s += sgl.assistant(sgl.gen("answer", **CALLED))

    file = write_film(tmp_path / "film.png", film(40, 60, 4), 500)
    state = watch.run(path=str(file), backend=engine)
    clip = read_clip(file, 4)
    vision = load(engine.config.model_path).vision
    assert vision is not None
    first, second = (segment.image.tokens for segment in vision.prepare_video(clip))
    begin, end = "<|vision_start|>", "<|vision_end|>"
    text = f"<|im_start|>user\n<0.2 seconds>{begin}{end}<1.2 seconds>{begin}{end}\n{QUESTION}"
    text += "<|im_end|>\n<|im_start|>assistant\n"
    count = len(engine.tokenizer.encode(text)) + first + second
    assert state.get_meta_info("answer")["prompt_tokens"] == count
    opening, closing = "<|im_start|>user\n", f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    params = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True, token_healing=False)
    prompt = (Text(opening), Video(str(file), 4), Text(closing))
    assert engine.submit(prompt, params).result()[0].text == state["answer"]
    assert stats(engine)["encoded_images"] == 2
