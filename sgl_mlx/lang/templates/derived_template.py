"""`DerivedTemplate`: writes turn by turn what the model's own chat template would write.

A model's chat template renders a whole conversation, but the language writes one turn at a time. So
this module renders conversations in which each content is a sentinel, a unique string, and cuts
the result at the sentinels. The text between two sentinels ends one turn and opens the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sgl_mlx.errors import ProgramError, TokenizerError
from sgl_mlx.lang.pictures import MARK
from sgl_mlx.lang.templates.turns import Opening, Roles

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]
_SENTINEL = "Sglmlx{}part"
_NEXT = {"system": "user", "user": "assistant", "assistant": "user"}
_MERGED_SYSTEM_GAP = "\n\n"


class DerivedTemplate:
    """A writer of single turns, derived from a function that renders whole conversations.

    If the chat template has no system role, system text goes to the start of the next user turn.
    """

    default_system_prompt = None  # the model's chat template adds its default itself

    def __init__(self, render: Render) -> None:
        self._render = render
        self._pieces: dict[tuple[Roles, bool], tuple[str, ...] | None] = {}

    @cached_property
    def image_token(self) -> str:
        """The text that a picture adds to its turn: a mark such as `<image>` and text around it."""
        text = {"type": "text", "text": _SENTINEL.format(0)}
        try:
            without = self._render([{"role": "user", "content": [text]}], False)
            shown = self._render([{"role": "user", "content": [{"type": "image"}, text]}], False)
        except TokenizerError:
            return MARK
        begin = len(os.path.commonprefix([without, shown]))  # noqa: RUF071  (by character)
        added = shown[begin : begin + len(shown) - len(without)]
        grew = without == shown[:begin] + shown[begin + len(added) :]
        return added if grew and added.count(MARK) == 1 else MARK

    @cached_property
    def stop(self) -> tuple[str, ...]:
        mark = self.end(("user",), "assistant").strip()
        return (mark,) if mark else ()

    def begin(self, closed: Roles, role: str) -> Opening:
        """Return the text that opens a turn of `role` after the `closed` turns.

        Raises:
            ProgramError: the template does not allow this order of roles.
        """
        written = self._before(closed, role).removeprefix(self._closing(closed))
        prompt = self._generation(closed) if role == "assistant" else None
        if prompt is None or (not prompt and written.strip()):
            return Opening(written)
        return Opening(prompt, written.removeprefix(prompt) if written.startswith(prompt) else "")

    def end(self, closed: Roles, role: str) -> str:
        turns = (*closed, role)
        last, following = self._cut(turns), self._cut((*turns, _NEXT[role]))
        if last is None:
            return following[-2] if following else ""
        if following is None:
            return last[-1]
        return os.path.commonprefix([last[-1], following[-2]])  # noqa: RUF071  (by character)

    def _closing(self, closed: Roles) -> str:
        return self.end(closed[:-1], closed[-1]) if closed else ""

    def _before(self, closed: Roles, role: str) -> str:
        """Return the text from the end of the last closed turn's content to the new turn's content.

        Raises:
            ProgramError: the template does not allow this order of roles.
        """
        turns = (*closed, role)
        pieces = self._cut(turns)
        if pieces is None and role == "system":
            following = self._cut((*turns, "user"))
            pieces = following and following[:-1]
        if pieces is None:
            raise ProgramError(
                "the model's chat template does not allow turns in the order "
                f"{', '.join(turns)}{self._reason(turns)}"
            )
        return pieces[-2]

    def _generation(self, closed: Roles) -> str | None:
        """Return the generation prompt after the closed turns; None if the template has none."""
        pieces = self._cut(closed, generation=True) if closed else None
        if pieces is None or not pieces[-1].startswith(self._closing(closed)):
            return None
        return pieces[-1].removeprefix(self._closing(closed))

    def _cut(self, turns: Roles, generation: bool = False) -> tuple[str, ...] | None:
        """Return what the template writes before, between and after the contents of turns.

        Returns None if the template rejects the turns, or drops, repeats or reorders contents.
        """
        key = (turns, generation)
        if key not in self._pieces:
            self._pieces[key] = self._rendered(turns, generation)
        return self._pieces[key]

    def _rendered(self, turns: Roles, generation: bool) -> tuple[str, ...] | None:
        contents = [_SENTINEL.format(i) for i in range(len(turns))]
        try:
            text = self._render(self._messages(turns, contents), generation)
        except TokenizerError:
            return None
        pieces = tuple(re.split("|".join(map(re.escape, contents)), text))
        found = re.findall(_SENTINEL.format(r"\d+"), text)
        return pieces if found == contents else None

    def _messages(self, turns: Roles, contents: Sequence[str]) -> list[dict[str, str]]:
        messages = [{"role": r, "content": c} for r, c in zip(turns, contents, strict=True)]
        return messages if self._has_system else merge_system(messages)

    @cached_property
    def _has_system(self) -> bool:
        return takes_system(self._render)

    def _reason(self, turns: Roles) -> str:
        try:
            self._render(self._messages(turns, ["x"] * len(turns)), False)
        except TokenizerError as error:
            return f": {error}"
        return ""


def takes_system(render: Render) -> bool:
    """Return True if a model's chat template accepts system turns."""
    turns = [
        {"role": role, "content": _SENTINEL.format(i)} for i, role in enumerate(("system", "user"))
    ]
    try:
        return turns[0]["content"] in render(turns, False)
    except TokenizerError:
        return False


def merge_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the turns with each system text moved into the next user turn, or into a new one."""
    merged: list[dict[str, str]] = []
    held = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            held += content + _MERGED_SYSTEM_GAP
        elif role == "user":
            merged.append({"role": "user", "content": held + content})
            held = ""
        else:
            merged.extend(_held_turn(held))
            merged.append({"role": role, "content": content})
            held = ""
    return [*merged, *_held_turn(held)]


def _held_turn(held: str) -> list[dict[str, str]]:
    text = held.removesuffix(_MERGED_SYSTEM_GAP)
    return [{"role": "user", "content": text}] if text else []
