"""Pictures over HTTP on a toy that sees: computed, refused when they are bombs, cached."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

from tests.runtime.conftest import llava_folder, open_llava
from tests.server.scripted import CHATML

__all__ = ["llava_folder", "open_llava"]


def photo(color: str) -> str:
    buffer = io.BytesIO()
    Pillow.new("RGB", (30, 20), color).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def bomb() -> str:
    """A PNG of a few bytes that says it has ten thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
    return "data:image/png;base64," + base64.b64encode(content + chunk(b"IEND", b"")).decode()


def asked(url: str) -> dict[str, Any]:
    picture = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What?"}
    return {"messages": [{"role": "user", "content": [picture, text]}], "max_tokens": 4, "seed": 1}


@pytest.fixture
def url(open_llava: Any, serve: Any) -> str:
    engine = open_llava()
    engine.tokenizer.chat_template = CHATML
    return str(serve(engine))


def test_a_picture_is_seen_and_found_again(url: str, client: httpx.Client) -> None:
    answers = [
        client.post(f"{url}/v1/chat/completions", json=asked(photo(color))).json()
        for color in ("red", "red", "blue")
    ]
    usages = [answer["usage"] for answer in answers]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert cached[1] == usages[0]["prompt_tokens"] - 1
    assert cached[2] < cached[1]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "picture", [bomb(), "data:image/png;base64,AAAA", "data:text/plain,hello", "data:,"]
)
def test_what_is_no_picture_is_400(url: str, client: httpx.Client, picture: str) -> None:
    answer = client.post(f"{url}/v1/chat/completions", json=asked(picture))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    fine = client.post(f"{url}/v1/chat/completions", json=asked(photo("red")))
    assert fine.status_code == 200
