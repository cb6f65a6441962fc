"""Rendered conversations in which repeated answers are replaced by their original tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from sgl_mlx.core import Part, Text
from sgl_mlx.errors import TokenizerError
from sgl_mlx.server.memory import Answer

Message = dict[str, Any]
Render = Callable[[Sequence[Message]], str]
Recall = Callable[[Message], Answer | None]

_MARK = re.compile("\ue010\\d+\ue011")
MARKS = ("\ue010", "\ue011")
"""Private-use characters around a message's index, which mark an answer in a rendered template."""


def spliced(text: str, messages: Sequence[Message], render: Render, recall: Recall) -> list[Part]:
    """Return a rendered conversation as parts, with the original tokens of known answers.

    The answers are located by rendering once more with a mark in place of each answer. Answers
    that cannot be located stay as text.

    Args:
        text: the rendered conversation.
        render: renders messages with the chat template.
        recall: returns the earlier answer that a message repeats, or None.
    """
    answers = {
        i: answer
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and (answer := recall(message)) is not None
    }
    if not answers:
        return [Text(text)]
    marked = [
        {"role": "assistant", "content": f"{MARKS[0]}{i}{MARKS[1]}"} if i in answers else message
        for i, message in enumerate(messages)
    ]
    try:
        first, *others = _MARK.split(render(marked))
    except TokenizerError:
        return [Text(text)]
    if len(others) != len(answers) or not text.startswith(first):
        return [Text(text)]
    parts: list[Part] = [Text(first)]
    at = len(first)
    for answer, between in zip(answers.values(), others, strict=True):
        end = text.find(between, at) if between else len(text)
        if end < 0:
            return [*parts, Text(text[at:])]
        parts += [*answer.spoken(text[at:end]), Text(between)]
        at = end + len(between)
    return [*parts, Text(text[at:])]
