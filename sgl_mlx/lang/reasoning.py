"""Reasoning models think aloud between two marks before they answer."""

from __future__ import annotations

_MARKS = {"kimi": ("◁think▷", "◁/think▷")}
_USUAL_MARKS = ("<think>", "</think>")


def split_reasoning(text: str, model_type: str | None = None) -> tuple[str, str]:
    """(reasoning, answer). A missing opening mark was in the prompt; a missing end was cut off."""
    begin, end = _MARKS.get(model_type or "", _USUAL_MARKS)
    opened = begin in text
    before, _, rest = text.partition(begin) if opened else ("", "", text)
    if end not in rest:
        return (rest.strip(), before) if opened else ("", text)
    reasoning, _, answer = rest.partition(end)
    return reasoning.strip(), before + answer.lstrip()
