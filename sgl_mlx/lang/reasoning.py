"""Separation of a reasoning model's thoughts, which stand between two marks, from its answer."""

from __future__ import annotations

_MARKS = {"kimi": ("◁think▷", "◁/think▷")}
_USUAL_MARKS = ("<think>", "</think>")


def split_reasoning(text: str, model_type: str | None = None) -> tuple[str, str]:
    """Split a text into (reasoning, answer).

    Without the opening mark, the reasoning began in the prompt; without the closing mark, it was
    cut off.
    """
    begin, end = _MARKS.get(model_type or "", _USUAL_MARKS)
    opened = begin in text
    before, _, rest = text.partition(begin) if opened else ("", "", text)
    if end not in rest:
        return (rest.strip(), before) if opened else ("", text)
    reasoning, _, answer = rest.partition(end)
    return reasoning.strip(), before + answer.lstrip()
