"""Conversion of prompts and parameters to OpenAI's requests, and of OpenAI's answers to text."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from sgl_mlx.bounds import shown
from sgl_mlx.core import FinishReason, Image, Part, SamplingParams, Text
from sgl_mlx.errors import BackendError, ProgramError
from sgl_mlx.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from sgl_mlx.lang.pictures import openai_content
from sgl_mlx.lang.templates.chat_template import get_chat_template

CHATML = get_chat_template("chatml")
OPEN_TURN = "<|im_start|>assistant\n"
PICTURE = "\ue00f"
_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\n", re.DOTALL)
_REASONING_MODEL = re.compile(r"(^|/)(o\d|gpt-5(?!-chat))", re.IGNORECASE)
_NOT_FOR_REASONING = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
)
_IGNORED = (
    "regex",
    "json_schema",
    "grammar",
    "ebnf",
    "stop_regex",
    "stop_token_ids",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_new_tokens",
    "ignore_eos",
    "return_logprob",
)
_DTYPES = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}


def options(model: str, params: SamplingParams) -> dict[str, Any]:
    """Return the request's options for sampling parameters; warn of parameters the API lacks."""
    _warn_ignored(model, [n for n in _IGNORED if getattr(params, n) != getattr(SamplingParams, n)])
    stops = [stop for stop in params.stop if stop not in CHATML.stop]
    given = {
        "model": model,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias} or None,
        "seed": params.seed,
        "stop": stops or None,
    }
    known = {name: value for name, value in given.items() if value is not None}
    return _for_reasoning(model, known) if _REASONING_MODEL.search(model) else known


def _for_reasoning(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Adapt options to a reasoning model.

    `max_tokens` becomes `max_completion_tokens`. Options that reasoning models refuse are left out,
    with a warning if they were set.
    """
    kept = {k: v for k, v in given.items() if k not in (*_NOT_FOR_REASONING, "max_tokens")}
    usual = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    left_out = [k for k in _NOT_FOR_REASONING if k in given and given[k] != usual.get(k)]
    _warn_ignored(model, left_out)
    return {**kept, "max_completion_tokens": given["max_tokens"]}


def _warn_ignored(model: str, names: list[str]) -> None:
    if names:
        warnings.warn(f"{model}: its API does not take {', '.join(names)}; ignored", stacklevel=2)


def without_refused(request: Mapping[str, Any], error: Exception) -> dict[str, Any] | None:
    """Return the request without the parameter that the API refused, according to `error`.

    A refused `max_tokens` is renamed to `max_completion_tokens`. Returns None if the error has
    another cause, or the parameter cannot be left out. Needed for reasoning models whose names
    `options` does not recognise.
    """
    name = getattr(error, "param", None)
    if name == "max_tokens" and name in request:
        renamed = {k: v for k, v in request.items() if k != name}
        return {**renamed, "max_completion_tokens": request[name]}
    if name in (*_NOT_FOR_REASONING, "stop", "seed") and name in request:
        _warn_ignored(str(request.get("model")), [name])
        return {k: v for k, v in request.items() if k != name}
    return None


def messages(text: str, urls: Iterable[str]) -> list[dict[str, Any]]:
    """Return the messages of a prompt. The prompt must end in an open assistant turn.

    Text that the program has written in the open turn becomes the last message, with a warning.

    Args:
        text: the prompt in ChatML, with `PICTURE` in place of each picture.
        urls: the URLs of the pictures in order.

    Raises:
        ProgramError: the prompt does not end in an assistant turn, or has text outside turns.
    """
    head, mark, begun = text.rpartition(OPEN_TURN)
    turns = _TURN.findall(head)
    if not mark or _TURN.sub("", head):
        raise ProgramError(
            "a chat model takes turns: put all text into system(), user() and assistant(), and "
            f"gen() in an assistant turn. The prompt ends in {text[-60:]!r}"
        )
    if begun:
        turns.append(("assistant", begun))
        warnings.warn(
            "the program begins the answer; a chat model may go on from there or start anew",
            stacklevel=2,
        )
    left = iter(urls)
    return [{"role": role, "content": _content(content, left)} for role, content in turns]


def begun_answer(text: str) -> str:
    """Return the text that the program has already written in the open assistant turn."""
    return text.rpartition(OPEN_TURN)[2]


def _content(text: str, urls: Iterator[str]) -> str | list[dict[str, Any]]:
    first, *others = text.split(PICTURE)
    if not others:
        return text
    parts: list[Part] = [Text(first)]
    for url, piece in zip(islice(urls, len(others)), others, strict=True):
        parts += [Image(url), Text(piece)]
    return openai_content(tuple(parts))


# -- answers --------------------------------------------------------------------------------------


def choices_of(answer: Any) -> list[Any]:
    """Return the choices of an answer or a stream event; empty if there are none.

    Raises:
        BackendError: the answer contains an error, which the `openai` client did not raise.
    """
    if error := getattr(answer, "error", None):
        said = error.get("message", error) if isinstance(error, Mapping) else error
        raise BackendError(f"the API reports an error: {said}")
    return list(getattr(answer, "choices", None) or ())


def text_of(choice: Any) -> str:
    """Return the text of a completion, chat message or streamed piece; "" if it has none.

    Content in parts gives the text of its text parts.

    Raises:
        BackendError: the content is neither a text nor a list of parts.
    """
    for name in ("message", "delta"):
        if (part := getattr(choice, name, None)) is not None:
            return _content_text(getattr(part, "content", None))
    return _content_text(getattr(choice, "text", None))


def _content_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        fields = [p if isinstance(p, Mapping) else getattr(p, "__dict__", {}) for p in content]
        texts = [part.get("text") for part in fields if part.get("type", "text") == "text"]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise BackendError(f"the API's content must be a text or a list of parts, got {shown(content)}")


def told(error: Exception, address: object) -> str | None:
    """Return what an error of the API or of its client says; None for other errors.

    Args:
        address: the API's address, which errors of the connection name.
    """
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return f"the API at {address} answered with something that is no JSON: {error}"
    if type(error).__module__.partition(".")[0] != "openai":  # which is not imported here
        return None
    response = getattr(error, "response", None)
    if response is None and hasattr(error, "request"):
        return f"{error} (the API is at {address})"
    said = "" if response is None or " - " in str(error) else f" - {response.text:.200}"
    return f"{error}{said}"


def count(usage: Any, name: str) -> int:
    """Return a count of tokens in an answer's `usage`; 0 if the answer does not have it."""
    found = getattr(usage, name, None)
    return found if isinstance(found, int) else 0


def refusal_of(choice: Any) -> str | None:
    """Return the model's words of refusal; None if it did not refuse."""
    for name in ("message", "delta"):
        if (part := getattr(choice, name, None)) is not None:
            return _content_text(getattr(part, "refusal", None)) or None
    return None


def finish_reason(reason: str | None) -> FinishReason:
    """Return the `FinishReason` for OpenAI's finish reason; filtered content counts as aborted."""
    if reason == "content_filter":
        return FinishReason("abort", message="content_filter: the service withheld text")
    return FinishReason("length" if reason == "length" else "stop")


def typed(text: str, dtype: str | None) -> str:
    """Return the first value of type `dtype` in the model's text, since the API has no dtypes.

    For "str", quotation marks are added if the text does not begin with one. If `dtype` is None,
    the whole text is returned; also, with a warning, if the text has no such value.
    """
    if dtype is None:
        return text
    if dtype == "str":
        return text if text.startswith('"') else '"' + text.split('"')[0].strip() + '"'
    found = re.search(_DTYPES[dtype], text)
    if found is None:
        warnings.warn(f"the model wrote no {dtype}: {text[:80]!r}", stacklevel=2)
    return found.group().strip() if found else text
