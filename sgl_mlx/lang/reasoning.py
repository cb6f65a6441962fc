"""Separation of a model's reasoning, between two marks such as `<think>`, from its answer."""

from __future__ import annotations

_MARKS = {"kimi": ("◁think▷", "◁/think▷")}
_USUAL_MARKS = ("<think>", "</think>")


def split_reasoning(text: str, model_type: str | None = None) -> tuple[str, str]:
    """Split a text into (reasoning, answer).

    The reasoning is the text between the opening and the closing mark. Without an opening mark, it
    begins at the start of the text; without a closing mark, it goes on to the end. A text without
    marks is all answer.

    Args:
        model_type: "kimi" for Kimi's marks; otherwise the marks are `<think>` and `</think>`.
    """
    begin, end = _MARKS.get(model_type or "", _USUAL_MARKS)
    opened = begin in text
    before, _, rest = text.partition(begin) if opened else ("", "", text)
    if end not in rest:
        return (rest.strip(), before) if opened else ("", text)
    reasoning, _, answer = rest.partition(end)
    return reasoning.strip(), before + answer.lstrip()
