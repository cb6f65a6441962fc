"""A store of earlier answers, so that the next turn's prompt repeats their exact tokens.

When a client sends an answer back with its next request, the answer may give other tokens: its tool
calls are formatted anew, and its text is tokenized anew. If the message has the same content as a
stored answer, the prompt gets the answer's original tokens, so that the prefix cache can be used.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.core import Completion, Generated, Part, StreamEvent, Text
from sgl_mlx.limits import Limits
from sgl_mlx.server.output import Form, OutputParser, Piece

Meaning = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class Answer:
    """An answer that the model generated: its text, its tokens, and how it is parsed.

    Attributes:
        opening: end of the prompt, from the tag that opens the reasoning; empty if the prompt does
            not open reasoning.
    """

    text: str
    tokens: array[int]
    form: Form
    opening: str = ""

    def spoken(self, said: str) -> tuple[Part, ...]:
        """Return the answer's original tokens if `said` has the same content; else `said` as text.

        The content is compared by `meaning`.

        Args:
            said: the answer as the chat template rendered it.
        """
        own = self.opening + self.text
        if said != own and meaning(said, self.form) != meaning(own, self.form):
            return (Text(said),)
        return Text(self.opening), Generated(self.text, tuple(self.tokens))


class Memory:
    """A thread-safe store of answers; each answer belongs to an owner.

    The owner is the name of a part of the prefix cache, see `visit.cache_name`. When the store
    holds more than `tokens` tokens, the least recently used answers are dropped. A million tokens
    take about 4 MB, and as much again for their text.
    """

    def __init__(self, tokens: int = Limits().max_answer_tokens) -> None:
        self._limit = tokens
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def of(self, owner: str) -> Answers:
        """Return a view of the answers that belong to `owner`."""
        return Answers(self, owner)

    def keep(self, pieces: Sequence[Piece], answer: Answer, owner: str = "") -> None:
        """Store an answer; `find` will look for the text and the tool calls of `pieces`."""
        text, _, calls = _meaning_of(pieces)
        key = _key(owner, text, calls)
        with self._lock:
            self._forget(key)
            self._answers[key] = answer
            self._count += len(answer.tokens)
            while self._count > self._limit:
                self._forget(next(iter(self._answers)))

    def find(self, message: Mapping[str, Any], owner: str = "") -> Answer | None:
        """Return the stored answer with the text and tool calls of `message`; None if not found.

        Args:
            message: an assistant message in OpenAI's shape.
        """
        functions = [call["function"] for call in message.get("tool_calls", ())]
        calls = tuple(_call_text(f["name"], f["arguments"]) for f in functions)
        key = _key(owner, str(message.get("content") or "").strip(), calls)
        with self._lock:
            found = self._answers.get(key)
            if found is not None:
                self._answers.move_to_end(key)
        return found

    def _forget(self, key: str) -> None:
        if (old := self._answers.pop(key, None)) is not None:
            self._count -= len(old.tokens)


@dataclass(frozen=True)
class Answers:
    """A view of a `Memory` with the answers of one owner alone; see `Memory`."""

    memory: Memory
    owner: str

    def keep(self, pieces: Sequence[Piece], answer: Answer) -> None:
        self.memory.keep(pieces, answer, self.owner)

    def find(self, message: Mapping[str, Any]) -> Answer | None:
        return self.memory.find(message, self.owner)


class AnswerReader:
    """A parser of one answer, given whole or event by event, that stores the answer at its end.

    Args:
        form: how the answer is parsed.
        opening: see `Answer`.
        keep: called with the answer's pieces and the `Answer` when the answer has ended.
    """

    def __init__(self, form: Form, opening: str, keep: Callable[..., None]) -> None:
        self._form = form
        self._opening = opening
        self._keep = keep
        self._parser = OutputParser(form)
        self._text: list[str] = []
        self._tokens: array[int] = array("i")
        self._pieces: list[Piece] = []

    @property
    def calls(self) -> int:
        """Number of tool calls found so far."""
        return self._parser.calls

    def add(self, piece: StreamEvent | Completion) -> list[Piece]:
        """Parse an event or a whole answer; returns the pieces that it adds."""
        reason = piece.finish_reason
        found = self._parser.add(piece.text)
        if reason is not None:
            found += self._parser.finish(cut=reason.type == "length")
        self._text.append(piece.text)
        self._tokens.extend(piece.token_ids)
        self._pieces += found
        if reason is not None:
            text = "".join(self._text)
            self._keep(self._pieces, Answer(text, self._tokens, self._form, self._opening))
        return found


def meaning(text: str, form: Form) -> Meaning:
    """Return an answer's text, reasoning and tool calls, without surrounding white space."""
    parser = OutputParser(Form(form.thinking, False, form.family, form.tools))
    return _meaning_of([*parser.add(text), *parser.finish()])


def _meaning_of(pieces: Sequence[Piece]) -> Meaning:
    text, thought = (
        "".join(piece.text for piece in pieces if piece.kind == kind).strip()
        for kind in ("text", "reasoning")
    )
    calls = (piece.call for piece in pieces if piece.call is not None)
    return text, thought, tuple(_call_text(call.name, call.arguments) for call in calls)


def _call_text(name: str, arguments: Any) -> str:
    return json.dumps([name, arguments], sort_keys=True)


def _key(owner: str, text: str, calls: Sequence[str]) -> str:
    return json.dumps([owner, text, *calls])
