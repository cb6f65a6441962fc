"""Recorded prompts, compared anew with each other for `sgl-mlx cache-doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sgl_mlx.core import Text
from sgl_mlx.errors import PromptError
from sgl_mlx.server.doctor.history import History, Seen


def replayed(log: str) -> Iterator[Seen]:
    """Compare each prompt of a log with the prompts before it; yield the result for each.

    Args:
        log: lines of JSON. A line is an entry of `sgl-mlx serve --cache-log`, or the body of a
            request with `prompt`, `messages` (with `system` and `tools`) or `input`.

    Raises:
        PromptError: a line is not a JSON object, or holds no prompt; the message has the line's
            number.
    """
    history = History()
    for number, line in enumerate(log.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise PromptError(f"line {number} is no JSON: {error}") from error
        if not isinstance(entry, dict):
            raise PromptError(f"line {number} must be a JSON object, got {line[:60]}")
        yield _compared(history, entry, number)


def _compared(history: History, entry: Mapping[str, Any], number: int) -> Seen:
    prompt = _prompt(entry)
    if prompt is None:
        raise PromptError(f"line {number} has neither prompt, messages nor input")
    content = (Text(prompt),) if isinstance(prompt, str) else prompt
    seen = history.add(str(entry.get("id") or number), str(entry.get("owner") or ""), content)
    match entry:
        case {"prompt_tokens": int() as tokens, "cached_tokens": int() as cached}:
            history.found(seen, tokens, cached, float(entry.get("seconds") or 0))
    return seen


def _prompt(entry: Mapping[str, Any]) -> str | list[int] | None:
    given = entry.get("prompt")
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(type(token) is int for token in given):
        return given
    said = entry.get("messages", entry.get("input"))
    if isinstance(said, str):
        return said
    if not isinstance(said, list):
        return None
    head = (entry[name] for name in ("tools", "system", "instructions") if entry.get(name))
    return "\n".join([*map(_text, head), *map(_message, said)])


def _message(message: Any) -> str:
    if not isinstance(message, dict):
        return _text(message)
    rest = {k: v for k, v in message.items() if k not in ("role", "content")}
    told = [_text(message.get("content")), *([_text(rest)] if rest else [])]
    return f"{message.get('role', '')}: {' '.join(told)}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = (p["text"] if isinstance(p, dict) and "text" in p else p for p in value)
        return "\n".join(map(_text, parts))
    return "" if value is None else json.dumps(value, ensure_ascii=False)
