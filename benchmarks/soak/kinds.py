"""The kinds of requests that a soak mixes, each with the checks of its answers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as Pillow

from sgl_mlx.benchmarks.soak.visit import Facts, Visit, WrongAnswer

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}, "stars": {"enum": [1, 2, 3, 4, 5]}},
    "required": ["good", "stars"],
    "additionalProperties": False,
}
_REGEX = r"[a-z]{3,8}( [a-z]{3,8}){1,2}"
_PREFIXES = 4
"""Number of different long beginnings that the requests of `_shared` have."""


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Args:
        share: how many of about 100 requests are of this kind.
        send: sends one request; raises `WrongAnswer` or an error of httpx.
        pictures: True if the model must take pictures.
    """

    name: str
    share: int
    send: Callable[[Visit], Awaitable[None]]
    pictures: bool = False


def kinds(facts: Facts) -> Sequence[Kind]:
    """Return the kinds of requests that a server can answer."""
    return [kind for kind in _KINDS if facts.pictures or not kind.pictures]


def _said(text: object, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def _chat(visit: Visit) -> None:
    body = _said(visit.words(visit.draw.randint(5, 60)), max_tokens=visit.draw.randint(8, 48))
    _check_end(await visit.stream("/v1/chat/completions", body))


async def _samples(visit: Visit) -> None:
    body = {
        "prompt": visit.words(20),
        "max_tokens": 16,
        "n": 2,
        "temperature": 0.8,
        "top_p": 0.9,
        "logprobs": 2,
        "stop": ["\n\n"],
    }
    answer = await visit.post("/v1/completions", body)
    if [choice["index"] for choice in answer["choices"]] != [0, 1]:
        raise WrongAnswer("not the two samples that were asked for")


async def _shared(visit: Visit) -> None:
    number = visit.draw.randrange(_PREFIXES)
    prefix = f"Rules of house {number}. " + "be kind " * (visit.facts.longest // 8)
    messages = [
        {"role": "system", "content": prefix},
        {"role": "user", "content": visit.words(12)},
    ]
    body = {"messages": messages, "max_tokens": 24}
    _check_end(await visit.stream("/v1/chat/completions", body))


async def _long(visit: Visit) -> None:
    count = visit.draw.randint(visit.facts.longest // 2, visit.facts.longest)
    body = {"prompt": visit.words(count), "max_tokens": 4}
    _check_end(await visit.stream("/v1/completions", body))


async def _schema(visit: Visit) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "review", "schema": _SCHEMA}}
    body = _said(f"Review: {visit.words(10)}", max_tokens=64, response_format=form)
    [choice] = (await visit.post("/v1/chat/completions", body))["choices"]
    if choice["finish_reason"] == "stop":
        found = json.loads(choice["message"]["content"])
        if set(found) != set(_SCHEMA["required"]) or found["stars"] not in range(1, 6):
            raise WrongAnswer(f"not what the schema asks for: {found}")


async def _regex(visit: Visit) -> None:
    params = {"max_new_tokens": 40, "regex": _REGEX, "temperature": 1.0}
    body = {"text": visit.words(8), "sampling_params": params}
    answer = await visit.post("/generate", body)
    ended = answer["meta_info"]["finish_reason"]["type"] == "stop"
    if ended and not re.fullmatch(_REGEX, answer["text"]):
        raise WrongAnswer(f"the regex does not match {answer['text']!r}")


async def _decision(visit: Visit) -> None:
    asked = [{"type": "predicate", "instructions": visit.words(4)} for _ in range(2)]
    body = {"input": visit.words(30), "questions": asked, "model": "default"}
    answer = await visit.post("/v1/decisions", body)
    if "probability" not in json.dumps(answer):
        raise WrongAnswer("a decision without a probability")


async def _again(visit: Visit) -> None:
    """Ask something that was asked before; the greedy answer must be the same."""
    prompt = f"The {visit.draw.choice(('first', 'second', 'third'))} day of the week is"
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0}
    text = (await visit.post("/v1/completions", body))["choices"][0]["text"]
    told = visit.facts.told.setdefault(prompt, text)
    if text != told:
        raise WrongAnswer(f"{prompt!r} was continued with {told!r} before, now with {text!r}")


async def _disconnect(visit: Visit) -> None:
    body = _said(
        visit.words(visit.draw.choice((10, visit.facts.longest // 8))),
        max_tokens=200,
        ignore_eos=True,
    )
    await visit.stream("/v1/chat/completions", body, most=visit.draw.randint(0, 6))


async def _abort(visit: Visit) -> None:
    """Abort a request by its id; it must end, whole or with the status 499."""
    rid = uuid.uuid4().hex
    params = {"max_new_tokens": 200, "ignore_eos": True}
    body = {"text": visit.words(10), "rid": rid, "sampling_params": params}
    asked = asyncio.ensure_future(visit.post("/generate", body))
    try:
        await asyncio.sleep(visit.draw.random())
        await visit.sent("/abort_request", {"rid": rid})
        await asked
    except WrongAnswer as error:
        if not str(error).startswith("status 499"):
            raise
    finally:
        asked.cancel()


async def _bad(visit: Visit) -> None:
    path, body = visit.draw.choice(_BAD)
    if isinstance(body, Mapping):
        body = json.dumps(body).encode()
    await visit.refused(path, body, 400, 404, 413, 422)


async def _too_long(visit: Visit) -> None:
    prompt = "word " * (visit.facts.slots + 1)
    body = json.dumps({"prompt": prompt, "max_tokens": 1}).encode()
    await visit.refused("/v1/completions", body, 400)


async def _watch(visit: Visit) -> None:
    await visit.get(visit.draw.choice(("/health", "/metrics", "/v1/models", "/server_info")))


async def _picture(visit: Visit) -> None:
    url = picture(*(visit.draw.randrange(256) for _ in range(3)))
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    _check_end(await visit.stream("/v1/chat/completions", _said(parts, max_tokens=8)))


def picture(red: int, green: int, blue: int) -> str:
    """Return a small picture of one color as a `data:` URL."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (48, 32), (red, green, blue)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _check_end(chunks: Sequence[Mapping[str, Any]]) -> None:
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk.get("choices", ())]
    if not {"stop", "length"} & set(reasons):
        raise WrongAnswer("a stream without an end")


_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_BAD: Sequence[tuple[str, bytes | Mapping[str, Any]]] = [
    (_CHAT, b"{"),
    (_CHAT, b"\xff\xfe"),
    (_CHAT, {"messages": "hello"}),
    (_CHAT, {"messages": []}),
    (_CHAT, _said("hi", temperature=-1)),
    (_CHAT, _said("hi", max_tokens="many")),
    (_CHAT, _said("hi", model="no such model")),
    (_CHAT, _said("hi", response_format={"type": "json_schema", "json_schema": {"schema": 3}})),
    (_COMPLETIONS, {"prompt": ""}),
    (_COMPLETIONS, {"prompt": [10**9]}),
    (_COMPLETIONS, {"prompt": "hi", "n": 10**6}),
    (_COMPLETIONS, b"[" * 5000),
    ("/generate", {"text": "hi", "sampling_params": {"regex": "(("}}),
    ("/generate", {"text": "hi", "sampling_params": {"ebnf": "root ::= nowhere"}}),
    ("/generate", {"text": "hi", "image_data": "no picture"}),
    ("/v1/nothing", {}),
]
_KINDS = (
    Kind("chat", 18, _chat),
    Kind("samples", 9, _samples),
    Kind("shared prefix", 15, _shared),
    Kind("long prompt", 2, _long),
    Kind("schema", 7, _schema),
    Kind("regex", 6, _regex),
    Kind("decision", 5, _decision),
    Kind("same again", 8, _again),
    Kind("disconnect", 9, _disconnect),
    Kind("abort", 3, _abort),
    Kind("bad request", 12, _bad),
    Kind("too long", 1, _too_long),
    Kind("operation", 5, _watch),
    Kind("picture", 6, _picture, pictures=True),
)
