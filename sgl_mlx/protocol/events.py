"""Readers of streams of JSON events: server-sent events, or one JSON text on each line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sgl_mlx.errors import BackendError

_LINE_END = re.compile(r"\r\n|\r|\n")
_DONE = "[DONE]"


def json_events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream, until `[DONE]` or the end of the stream.

    Comments and the fields `event`, `id` and `retry` are skipped. Data may span several lines.

    Raises:
        BackendError: an event is cut off, is no JSON object, or reports an error.
    """
    data = ""
    for line in _lines(lines):
        field, colon, value = line.partition(":")
        if line.startswith(("{", _DONE)):
            data += line
        elif field == "data" and colon:
            data += value.removeprefix(" ")
        elif line or not data:
            continue
        if data.strip() == _DONE:
            return
        event = _parsed(data)
        if event is not None:
            yield checked(event)
            data = ""
        elif not line:
            raise BackendError(f"the server sent an event that is no JSON: {data[:200]!r}")
    if data.strip():
        raise BackendError(f"the server's answer was cut off in the middle: {data[-200:]!r}")


def checked(answer: Any) -> Any:
    """Return a server's answer unchanged: an object or a list of objects that report no error.

    Raises:
        BackendError: the answer is neither an object nor a list of objects, or reports an error
            (even with HTTP status 200).
    """
    for item in answer if isinstance(answer, list) else [answer]:
        if not isinstance(item, Mapping):
            raise BackendError(f"the server answered {str(item)[:200]!r} instead of an object")
        if item.get("error"):
            raise BackendError(f"the server reports an error: {_message(item['error'])}")
        if item.get("object") == "error":
            raise BackendError(f"the server reports an error: {item.get('message')}")
    return answer


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    for i, chunk in enumerate(chunks):
        text = chunk.decode("utf-8-sig" if i == 0 else "utf-8", errors="replace")
        yield from _LINE_END.split(text.removesuffix("\n").removesuffix("\r"))


def _parsed(data: str) -> Any:
    """Return the JSON value of a text; None if the text is empty or incomplete."""
    try:
        return json.loads(data) if data.strip() else None
    except ValueError:
        return None


def _message(error: Any) -> str:
    if isinstance(error, Mapping):
        code = error.get("code")
        said = str(error.get("message") or dict(error))
        return f"{said} (code {code})" if code is not None else said
    return str(error)


class GrowingText:
    """The text of a stream whose events hold either all text so far or only new text.

    SGLang's servers send all text in each event, or with `--stream-output` only new text. The
    events do not say which of the two they hold. This class assumes that each event holds all text
    so far, until an event's text does not begin with the previous event's text. From then on it
    assumes new text only.

    Args:
        increments: True if the server is known to send only new text.
    """

    def __init__(self, increments: bool = False) -> None:
        self.text = ""
        self._pieces: list[str] = []
        self._increments = increments
        self._shown = 0

    def add(self, piece: str, stopped_at: str | None = None) -> str:
        """Add the text of the next event; return the new text that can be shown to a reader.

        An incomplete character at the end is held back until a later event completes it.

        Args:
            stopped_at: the stop string that the event reports. The server may have cut the stop
                string off text that an earlier event held, so that the text gets shorter.
        """
        self._pieces.append(piece)
        if not self._increments and not self._goes_on(piece, stopped_at):
            self._increments = True
        self.text = "".join(self._pieces) if self._increments else piece
        # A character that is not complete yet is replaced by the next event.
        sure = self.text.rstrip("\ufffd")
        new, self._shown = sure[self._shown :], max(self._shown, len(sure))
        return new

    def finish(self) -> str:
        """Return the text that `add` has held back; call it after the last event."""
        return self.text[self._shown :]

    def _goes_on(self, text: str, stopped_at: str | None) -> bool:
        before = self.text.rstrip("\ufffd")
        if text.startswith(before):
            return True
        cut = before.removeprefix(text) if before.startswith(text) else ""
        return bool(cut and stopped_at and (stopped_at.startswith(cut) or stopped_at in cut))
