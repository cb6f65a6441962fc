"""Helpers that programs written for SGLang import."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import string
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

import sgl_mlx as sgl
from sgl_mlx.compat import srt, test_utils, utils
from sgl_mlx.compat.schema_regex import build_regex_from_object
from sgl_mlx.compat.tokenizer import TransformersTokenizer
from sgl_mlx.errors import BackendError, ImageError, NotYetError
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(rows=st.lists(VALUES, max_size=5), escaped=st.booleans())
def test_jsonl_is_a_list(tmp_path_factory: Any, rows: list[Any], escaped: bool) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    path.write_text("# a comment\n\n" + "\n".join(lines), "utf-8", errors="surrogatepass")
    if escaped or not any(re.search("[\ud800-\udfff]", line) for line in lines):
        assert utils.read_jsonl(str(path))[:3] == rows[:3]


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(ValueError, match="line 2"):
        utils.read_jsonl(str(tmp_path / "rows.jsonl"))


@given(st.lists(VALUES.filter(lambda v: "\ud800" not in str(v)), max_size=4))
def test_anything_can_be_dumped(tmp_path_factory: Any, things: list[Any]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "the state's text"

    path = tmp_path_factory.mktemp("dump") / "d.txt"
    utils.dump_state_text(str(path), [*things, program.run(backend=ScriptedBackend())])
    dumped = path.read_bytes().decode()
    assert "the state's text" in dumped
    assert all(str(thing) in dumped for thing in things if "\r" not in str(thing))


def test_pictures_become_base64(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 3))
    picture.save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    for source in (data, str(tmp_path / "p.png"), picture):
        decoded = base64.b64decode(utils.encode_image_base64(source))
        assert Image.open(BytesIO(decoded)).size == (2, 3)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (data, str(tmp_path / "p.png"), picture, url, url.partition(",")[2]):
        assert srt.load_image(source)[1] == (2, 3)
    with pytest.raises(ImageError, match="cannot be read"):
        srt.load_image(str(tmp_path / "gone.png"))


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._send({"path": self.path})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompts = asked.get("prompt", "")
        known = {"text": [prompts + " out"] * asked.get("n", 1), "generated_text": ["out"]}
        if "text" in asked:
            known["text"] = "out"
        known["prompt_score"] = len(prompts)  # type: ignore[assignment]
        self._send({**known, "key": self.headers.get("Authorization")}, asked.get("status", 200))

    def _send(self, document: Any, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_requests_reach_a_server(server: str, tmp_path: Path) -> None:
    answer = utils.http_request(server, json={"n": 1}, api_key="k")
    assert (answer.status_code, answer.json()["key"]) == (200, "Bearer k")
    assert utils.http_request(server, json={"status": 418}).status_code == 418
    assert utils.http_request(f"{server}/x").json() == {"path": "/x"}
    target = str(tmp_path / "f.json")
    assert utils.download_and_cache_file(f"{server}/f.json", target) == target
    Path(target).write_text("kept")
    utils.download_and_cache_file(f"{server}/f.json", target)
    assert Path(target).read_text() == "kept"
    utils.wait_for_server(server, timeout=PATIENCE)
    with pytest.raises(BackendError, match="no server"):
        utils.wait_for_server("http://127.0.0.1:9", timeout=0)


@pytest.mark.parametrize("backend", ["vllm", "lightllm", "srt-raw", "outlines"])
def test_other_servers_are_asked_in_their_own_way(server: str, backend: str) -> None:
    host, _, port = server.rpartition(":")
    args = Namespace(backend=backend, host=host, port=port)
    assert test_utils.get_call_generate(args)("hi", 0, 8, stop="\n").strip() == "out"
    if backend == "vllm":
        assert test_utils.get_call_generate(args)("hi", 0, 8, n=2) == [" out"] * 2
        assert test_utils.get_call_select(args)("hi", ["a", "bcd", "e"]) == 1
    with pytest.raises(ValueError, match="unknown backend 'x'"):
        test_utils.get_call_generate(Namespace(backend="x", host="", port=0))


def test_the_options_of_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", "--backend", "lightllm"])
    args = test_utils.add_common_other_args_and_parse(ArgumentParser())
    assert (args.port, args.parallel) == (22000, 64)


def test_raw_results_are_a_line_a_state(tmp_path: Path) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.gen("answer")

    states = [program.run(backend=ScriptedBackend("A"))]
    path = tmp_path / "raw.jsonl"
    test_utils.dump_bench_raw_result(str(path), states, [1], [1])
    assert utils.read_jsonl(str(path)) == [
        {"prompt_id": 0, "prompt": "Q", "output": "A", "correct": True}
    ]
    test_utils.dump_bench_raw_result(None, states, [1], [1])


class Engine:
    """Streams an answer in the shape of an engine's."""

    def generate(self, *_: Any, stream: bool) -> Iterator[dict[str, Any]]:
        yield from ({"text": "ab"[:n]} for n in (1, 2))

    async def async_generate(self, *_: Any, stream: bool) -> Any:
        async def events() -> Any:
            for event in self.generate(stream=True):
                yield event

        return events()


def test_streams_are_merged() -> None:
    async def pieces() -> list[str]:
        return [piece async for piece in utils.async_stream_and_merge(Engine(), "x", {})]

    assert utils.stream_and_merge(Engine(), "x", {}) == "ab"
    assert asyncio.run(pieces()) == ["a", "b"]
    assert utils.trim_overlap("hello wo", "world") == "rld"


# -- schemas as regular expressions ---------------------------------------------------------------


class Wand(BaseModel):
    wood: str
    length: float


class Character(BaseModel):
    name: str
    house: Literal["Gryffindor", "Slytherin"]
    age: int
    alive: bool
    wand: Wand
    friends: list[str]
    nickname: str | None


TEXTS = st.text(string.ascii_letters + ' "\\é', max_size=5)
CHARACTERS = st.builds(
    Character,
    name=TEXTS,
    house=st.sampled_from(["Gryffindor", "Slytherin"]),
    age=st.integers(-99, 99),
    alive=st.booleans(),
    wand=st.builds(Wand, wood=TEXTS, length=st.floats(-99, 99)),
    friends=st.lists(TEXTS, max_size=3),
    nickname=st.none() | TEXTS,
)


@given(CHARACTERS, st.sampled_from([None, 1]))
def test_the_expression_of_a_model_takes_its_values(value: Character, spread: int | None) -> None:
    text = json.dumps(value.model_dump(), ensure_ascii=False)
    pattern = build_regex_from_object(Character)
    assert re.fullmatch(pattern, text)
    assert re.fullmatch(pattern, text.replace(": ", ":").replace(", ", ","))
    assert not re.fullmatch(pattern, text[:-1])
    assert not re.fullmatch(pattern, text.replace('"age"', '"aged"'))


SCHEMAS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
    ({"type": "string", "pattern": "^[0-9]+$"}, ["12"], ["a"]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, [[1], [1, 2]], [[]]),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, [[], [None]], [[None, None]]),
    ({"enum": [1, "a.b", None]}, [1, "a.b", None], ["axb", 2]),
    ({"const": {"a": [1]}}, [{"a": [1]}], [{}]),
    ({"type": ["integer", "null"]}, [3, None], ["3"]),
    (
        {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": []},
        [{}, {"a": None}, {"b": None}, {"a": None, "b": None}],
        [{"b": None, "a": None}],
    ),
    (
        {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
        [{}, {"a": None}, {"b": None}, {"a": None, "b": None}],
        [{"b": None, "a": None}],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS)
def test_schemas_take_what_they_allow(
    schema: dict[str, Any], right: list[Any], wrong: list[Any]
) -> None:
    pattern = build_regex_from_object(json.dumps(schema))
    assert all(re.fullmatch(pattern, json.dumps(value)) for value in right)
    assert not any(re.fullmatch(pattern, json.dumps(value)) for value in wrong)


@pytest.mark.parametrize(
    "schema", [True, {}, {"type": "string", "format": "date"}, {"$ref": "#"}, {"not": {}}]
)
def test_what_no_expression_says_is_refused(schema: Any) -> None:
    with pytest.raises((NotYetError, KeyError)):
        build_regex_from_object(json.dumps(schema))


# -- reasoning and options ------------------------------------------------------------------------


@given(st.text("ab \n", max_size=6), st.text("cd", max_size=6), st.integers(1, 4))
def test_reasoning_is_parsed_whole_and_in_pieces(think: str, answer: str, size: int) -> None:
    text = f"<think>{think}</think>{answer}"
    assert srt.ReasoningParser("qwen3").parse_non_stream(text) == (think.strip(), answer)
    parser = srt.ReasoningParser("qwen3")
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(parser.parse_stream_chunk(piece)[1] for piece in pieces).endswith(answer)


def test_server_args_are_attributes() -> None:
    args = srt.ServerArgs(model_path="m", tp_size=2)
    assert (args.model_path, args.tp_size, args.port) == ("m", 2, None)


# -- tokenizers -----------------------------------------------------------------------------------


class OwnTokenizer:
    """As much of ours as the interface asks of it; tokens are characters."""

    vocab_size = 256

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return [1] * add_special + [ord(c) for c in text]

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return "".join(chr(i) for i in ids if i > 1 or not skip_special)

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def named_tokens(self) -> dict[str, str]:
        return {"eos_token": "e"}

    @property
    def backend(self) -> Any:
        return SimpleNamespace(token_to_id=ord)

    def render_chat(self, messages: Any, add_generation_prompt: bool = False, **_: Any) -> str:
        return (
            "".join(f"<{m['role']}>{m['content']}" for m in messages) + ">" * add_generation_prompt
        )


@given(st.text(string.ascii_letters, max_size=8))
def test_a_tokenizer_answers_as_transformers_do(text: str) -> None:
    own: Any = OwnTokenizer()
    tokenizer = TransformersTokenizer(own)
    ids = tokenizer.encode(text)
    assert tokenizer(text).input_ids == tokenizer(text)["input_ids"] == ids
    assert tokenizer([text, "x"]).attention_mask == [[1] * len(ids), [1, 1]]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == [text]
    turns = [{"role": "user", "content": text}]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert asked == f"<user>{text}>"
    assert tokenizer.apply_chat_template(turns) == own.encode(f"<user>{text}", False)
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.vocab_size) == (256, ord("e"), 256)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.pad_token_id) == ("e", None, None)
