"""Output items of the Responses API, and the stream events that report their progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from sgl_mlx.server.openai.responses_input import Item, Toolbox
from sgl_mlx.server.output import Piece
from sgl_mlx.server.service import new_id
from sgl_mlx.server.sse import frame
from sgl_mlx.server.tools.calls import Call


class Items:
    """An encoder of one answer as output items and stream events.

    Attributes:
        output: the finished items.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._number = 0
        self._open: _Text | None = None
        self.output: list[Item] = []

    def event(self, name: str, /, **fields: Any) -> bytes:
        """Encode an event with the next sequence number."""
        data = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return frame(data, name)

    def add(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        """Yield the encoded events for the next pieces of the answer."""
        for piece in pieces:
            if piece.call is not None:
                yield from self.close()
                yield from self._call(piece.call)
                continue
            if self._open is None or self._open.kind != piece.kind:
                yield from self.close()
                self._open = _TEXTS[piece.kind](piece.kind)
                yield self._of_item(
                    "response.output_item.added", item=self._open.item("in_progress")
                )
                yield from self._open.begin(self._about)
            yield self._open.grow(piece.text, self._about)

    def close(self) -> Iterator[bytes]:
        """Yield the events that finish the open item; nothing if no item is open."""
        if self._open is None:
            return
        yield from self._open.end(self._about)
        yield from self._done(self._open.item("completed"))
        self._open = None

    def _about(self, name: str, /, **fields: Any) -> bytes:
        """Encode an event about the content of the open item."""
        assert self._open is not None
        return self._of_item(name, item_id=self._open.id, content_index=0, **fields)

    def _of_item(self, name: str, /, **fields: Any) -> bytes:
        return self.event(name, output_index=len(self.output), **fields)

    def _done(self, item: Item) -> Iterator[bytes]:
        yield self._of_item("response.output_item.done", item=item)
        self.output.append(item)

    def _call(self, call: Call) -> Iterator[bytes]:
        item = self._toolbox.item(call, new_id("fc_"), "completed")
        free = item["type"] == "custom_tool_call"
        field = "input" if free else "arguments"
        kind = "response.custom_tool_call_input" if free else "response.function_call_arguments"
        begun = {**item, field: "", "status": "in_progress"}
        yield self._of_item("response.output_item.added", item=begun)
        yield self._of_item(f"{kind}.delta", item_id=item["id"], delta=item[field])
        told = {field: item[field], **({} if free else {"name": item["name"]})}
        yield self._of_item(f"{kind}.done", item_id=item["id"], **told)
        yield from self._done(item)


class _Text:
    """A message item whose text grows.

    The parameter `about` of its methods encodes an event about this item: `Items._about`.
    """

    prefix = "msg_"
    part_type = "output_text"
    details: ClassVar[dict[str, Any]] = {"logprobs": []}
    """Further fields of the events about the text."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.id = new_id(self.prefix)
        self.text = ""

    def item(self, status: str) -> Item:
        """Return the item with this status; its content is empty unless it is "completed"."""
        content = [self._part()] if status == "completed" else []
        return {"id": self.id, **self._head(), "status": status, "content": content}

    def begin(self, about: Any) -> Iterator[bytes]:
        """Yield the events that follow `response.output_item.added`."""
        yield about("response.content_part.added", part=self._part())

    def grow(self, text: str, about: Any) -> bytes:
        """Append text; returns the encoded event."""
        self.text += text
        return about(f"response.{self.part_type}.delta", delta=text, **self.details)  # type: ignore[no-any-return]

    def end(self, about: Any) -> Iterator[bytes]:
        """Yield the events that precede `response.output_item.done`."""
        yield about(f"response.{self.part_type}.done", text=self.text, **self.details)
        yield about("response.content_part.done", part=self._part())

    def _head(self) -> Item:
        return {"type": "message", "role": "assistant"}

    def _part(self) -> Item:
        return {"type": self.part_type, "text": self.text, "annotations": [], "logprobs": []}


class _Thought(_Text):
    """A reasoning item whose text grows."""

    prefix = "rs_"
    part_type = "reasoning_text"
    details: ClassVar[dict[str, Any]] = {}

    def _head(self) -> Item:
        return {"type": "reasoning", "summary": []}

    def _part(self) -> Item:
        return {"type": self.part_type, "text": self.text}


_TEXTS: dict[str, type[_Text]] = {"text": _Text, "reasoning": _Thought}
