"""Answers as Anthropic's content blocks, in a list or as stream events."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sgl_mlx.core import Completion, FinishReason, StreamEvent
from sgl_mlx.server.output import Piece
from sgl_mlx.server.sse import frame
from sgl_mlx.server.tools.calls import Call

_ID = re.compile(r"[\w-]+", re.ASCII)


def content(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Return the content blocks of a whole answer; neighbouring pieces of one kind are merged."""
    blocks: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.call is not None:
            blocks.append({**_tool_use(piece.call), "input": dict(piece.call.arguments)})
            continue
        name = _KINDS[piece.kind]
        if not blocks or blocks[-1]["type"] != name:
            blocks.append(_empty(name))
        blocks[-1][name] += piece.text
    return blocks


def stop(reason: FinishReason, calls: int) -> dict[str, Any]:
    """Return the `stop_reason` and `stop_sequence` of an answer; `calls` counts its tool calls."""
    if reason.type == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(reason.matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": reason.matched}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage(answer: Completion | StreamEvent, output_tokens: int) -> dict[str, int]:
    """Return token counts; cached prompt tokens are not part of `input_tokens`."""
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": output_tokens,
    }


class BlockEvents:
    """An encoder of pieces as stream events: each content block gets a start, deltas and a stop."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None

    def add(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        """Yield the encoded events for the next pieces of the answer."""
        for piece in pieces:
            if piece.call is not None:
                yield from self._call(piece.call)
                continue
            name = _KINDS[piece.kind]
            if self._open != name:
                yield from self.close()
                yield self._start(_empty(name))
                self._open = name
            yield self._delta({"type": f"{name}_delta", name: piece.text})

    def close(self) -> Iterator[bytes]:
        """Yield the events that end the open content block; nothing if no block is open."""
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open is not None:
            yield named("content_block_stop", index=self._index)
        self._open = None

    def _call(self, call: Call) -> Iterator[bytes]:
        yield from self.close()
        yield self._start({**_tool_use(call), "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments_json})
        self._open = "tool_use"
        yield from self.close()

    def _start(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return named("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named("content_block_delta", index=self._index, delta=delta)


_KINDS = {"text": "text", "reasoning": "thinking"}


def named(event: str, **fields: Any) -> bytes:
    """Encode a stream event; its name stands in the frame and, as `type`, in the data."""
    return frame({"type": event, **fields}, event)


def _empty(name: str) -> dict[str, Any]:
    block: dict[str, Any] = {"type": name, name: ""}
    return {**block, "signature": ""} if name == "thinking" else block


def _tool_use(call: Call) -> dict[str, Any]:
    usable = _ID.fullmatch(call.id) is not None
    name = call.id if usable else f"toolu_{uuid.uuid4().hex[:24]}"
    return {"type": "tool_use", "id": name, "name": call.name}
