"""The interface of a chat template, as a transcript uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Roles = tuple[str, ...]
"""The roles of the turns of a conversation, in order."""


@dataclass(frozen=True)
class Opening:
    """The text that opens a turn.

    `owed` follows `text` if the program continues with text of its own. If it continues with
    `gen`, the model writes it: the blank after `[/INST]`, or an empty think block.
    """

    text: str
    owed: str = ""


class TurnWriter(Protocol):
    """A writer of turns; `closed` are the roles of the turns before."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a generated turn."""
        ...

    @property
    def default_system_prompt(self) -> str | None:
        """A system turn to write first when the program writes none."""
        ...

    @property
    def image_token(self) -> str:
        """Text that stands for a picture; its parts around `<image>` are written as text."""
        ...

    def begin(self, closed: Roles, role: str) -> Opening: ...

    def end(self, closed: Roles, role: str) -> str: ...
