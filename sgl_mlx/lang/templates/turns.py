"""The interface of chat templates to the interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Roles = tuple[str, ...]
"""The roles of the turns of a conversation, in order."""


@dataclass(frozen=True)
class Opening:
    """The text that opens a turn.

    `owed` follows `text` when the program goes on with text of its own, but is left to the model
    when it goes on with `gen`: the blank after `[/INST]`, an empty think block.
    """

    text: str
    owed: str = ""


class TurnWriter(Protocol):
    """A chat template, asked turn by turn; `closed` are the roles of the turns before."""

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
        """The mark of a picture; text around `<image>` in it is written as text."""
        ...

    def begin(self, closed: Roles, role: str) -> Opening: ...

    def end(self, closed: Roles, role: str) -> str: ...
