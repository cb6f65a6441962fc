"""Parts of answers that chat completions and completions share: usage, finish reason, chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sgl_mlx.core import Completion, FinishReason, StreamEvent
from sgl_mlx.server.errors import HttpError, openai_body
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.openai.fields import Sampling
from sgl_mlx.server.service import new_id
from sgl_mlx.server.sse import DONE, frame


class Usage:
    """Token counts of a request: each prompt counts once, however many samples it has."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion = 0
        self.reasoning = 0

    def add(self, prompt: int, piece: StreamEvent | Completion) -> None:
        """Count the tokens of a completion or stream event; `prompt` is the index of its prompt."""
        self._prompts.setdefault(prompt, (piece.prompt_tokens, piece.cached_tokens))
        self._completion += len(piece.token_ids)

    def to_dict(self) -> dict[str, Any]:
        counts = self._prompts.values()
        prompt, cached = sum(p for p, _ in counts), sum(c for _, c in counts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


def finish(reason: FinishReason | None) -> dict[str, Any]:
    """Return a choice's `finish_reason` and, if the choice has ended, SGLang's `matched_stop`."""
    if reason is None:
        return {"finish_reason": None}
    return {"finish_reason": reason.type, "matched_stop": reason.matched}


def asks(fields: Sampling, prompts: Iterable[Any], params: Any, name: str) -> tuple[str, list[Ask]]:
    """Return the request's id, and one `Ask` per prompt, whose id derives from the request's id.

    Args:
        params: sampling parameters of all prompts.
        name: prefix of the request's id, if the request gives no id.
    """
    rid = fields.rid or new_id(name)
    rows = list(prompts)
    names = [rid] if len(rows) == 1 else [f"{rid}-{i}" for i in range(len(rows))]
    made = [
        Ask(prompt, params, name, fields.priority or 0)
        for prompt, name in zip(rows, names, strict=True)
    ]
    return rid, made


class Chunks:
    """An encoder of a streamed answer's chunks, with usage if the request asks for it.

    Args:
        fields: the request.
        head: fields that every chunk begins with.
    """

    def __init__(self, fields: Sampling, head: dict[str, Any]) -> None:
        self._fields = fields
        self._head = head
        self.usage = Usage()

    def frame(self, choice: dict[str, Any]) -> bytes:
        """Encode a chunk with one choice."""
        usage: dict[str, Any] = {}
        if self._fields.wants_usage:
            running = self._fields.wants_running_usage
            usage = {"usage": self.usage.to_dict() if running else None}
        return frame({**self._head, "choices": [choice], **usage})

    def last(self) -> bytes:
        """Encode the end of the stream, with the usage if the request asks for it."""
        if not self._fields.wants_usage:
            return DONE
        return frame({**self._head, "choices": [], "usage": self.usage.to_dict()}) + DONE


def failure(error: HttpError) -> bytes:
    return frame(openai_body(error)) + DONE
