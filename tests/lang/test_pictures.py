"""Pictures in programs: where they stand in the prompt, the text, the turns and the protocols."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

import sgl_mlx as sgl
from sgl_mlx.core import Image, Parallel, Text, Video
from sgl_mlx.errors import ImageError, NotYetError
from sgl_mlx.lang.pictures import around, data_url, data_urls, flat_text, has_pictures
from sgl_mlx.lang.templates.chat_template import get_chat_template
from sgl_mlx.testing import ScriptedBackend


def png() -> bytes:
    buffer = BytesIO()
    Pillow.new("RGB", (2, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


@sgl.function
def ask(s: Any, *pictures: Any) -> None:
    with s.user():
        for picture in pictures:
            s += sgl.image(picture)
        s += "What is this?"
    s += sgl.assistant(sgl.gen("answer"))


def test_text_around_the_mark_of_a_template_is_text() -> None:
    backend = ScriptedBackend("a cat")
    backend.chat_template = get_chat_template("vicuna_v1.1")  # type: ignore[attr-defined]
    state = ask.run("cat.png", backend=backend)
    prompt = backend.calls[0].prompt
    assert [part for part in prompt if isinstance(part, Image)] == [Image("cat.png")]
    before, mark, after = around(get_chat_template("vicuna_v1.1").image_token)
    assert before + mark + after + "What is this?" in state.text()
    place = prompt.index(Image("cat.png"))
    assert isinstance(prompt[place + 1], Text)
    assert prompt[place + 1].text.startswith(after + "What")


@pytest.mark.parametrize("source", ["file", "path", "url", "bytes", "bytearray", "pillow"])
def test_turns_with_pictures_have_openais_form(tmp_path: Path, source: str) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(png())
    given: Any = {
        "file": str(file),
        "path": file,
        "url": file.as_uri(),
        "bytes": png(),
        "bytearray": bytearray(png()),
        "pillow": Pillow.open(BytesIO(png())),
    }[source]
    asked, answered = ask.run(given, given, backend=ScriptedBackend("a cat")).messages()
    assert answered == {"role": "assistant", "content": "a cat"}
    *images, text = asked["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert len(images) == 2
    url = images[0]["image_url"]["url"]
    head, _, body = url.partition(",")
    assert head == "data:image/png;base64"
    with Pillow.open(BytesIO(base64.b64decode(body))) as opened:
        assert opened.size == (2, 3)


def test_pictures_survive_fork_copy_and_joining() -> None:
    backend = ScriptedBackend("x")
    backend.supports_parallel = True  # type: ignore[attr-defined]
    state = sgl.function(lambda s: s.__iadd__(sgl.image("a.png"))).run(backend=backend)
    branches = state.fork(2)
    for branch, name in zip(branches, ("b.png", "c.png"), strict=True):
        branch += sgl.image(name) + sgl.gen("seen")
    assert [branch["seen"] for branch in branches] == ["x", "x"]
    assert {call.prompt for call in backend.calls if call.kind == "submit"} == {
        (Image("a.png"), Image("b.png")),
        (Image("a.png"), Image("c.png")),
    }
    with state.copy() as copied:
        copied += "more"
    assert copied.text() == "<image>more"


def test_the_prefix_of_a_program_ends_at_its_first_picture() -> None:
    from sgl_mlx.lang.prefix import constant_prefix

    @sgl.function
    def program(s: Any, question: str) -> None:
        s += "Look: " + sgl.image("cat.png") + "Well. " + question

    assert constant_prefix(program, lambda: get_chat_template("default")) == "Look: "


def test_pictures_are_found_and_counted_inside_branches() -> None:
    prompt = (Text("a"), Parallel(((Image(png()),), (Text("b"), Image(png())))))
    assert has_pictures(prompt)
    assert not has_pictures((Text("a"), Parallel(((Text("b"),),))))
    assert flat_text(prompt, "#") == "a#b#"
    assert len(data_urls(prompt)) == 2


def test_what_cannot_be_sent_says_why(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png"):
        data_url(str(tmp_path / "none.png"))
    with pytest.raises(ImageError, match="3 bytes"):
        data_url(b"abc")
    with pytest.raises(NotYetError, match=r"cat\.mp4.*image\(\)"):
        data_urls((Video("cat.mp4", 4),))
    assert data_url("https://example.com/cat.png") == "https://example.com/cat.png"


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "I", "I;16", "F", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_an_open_picture_of_every_mode_can_be_sent(mode: str) -> None:
    url = data_url(Pillow.new(mode, (2, 3)))
    with Pillow.open(BytesIO(base64.b64decode(url.partition(",")[2]))) as opened:
        assert opened.size == (2, 3)
