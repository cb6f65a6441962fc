"""`TurnWriter`: the protocol of chat templates, as `Transcript` uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Roles = tuple[str, ...]
"""The roles of the turns of a conversation, in order."""


@dataclass(frozen=True)
class Opening:
    """The text that opens a turn: always `text`, and sometimes also `owed`.

    `owed` is text that the model writes itself if the turn begins with `gen`, such as the blank
    after `[/INST]` or an empty think block. If the turn begins with text of the program, `owed` is
    written between `text` and the program's text.
    """

    text: str
    owed: str = ""


class TurnWriter(Protocol):
    """A chat template that writes one turn at a time.

    `begin` returns the text that opens a turn, `end` returns the text that ends a turn. `closed`
    are the roles of all earlier turns of the conversation.
    """

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a generated turn."""
        ...

    @property
    def default_system_prompt(self) -> str | None:
        """The system text to write first if the program writes none; None for no system turn."""
        ...

    @property
    def image_token(self) -> str:
        """The text that stands for a picture: a mark such as `<image>` and text around it."""
        ...

    def begin(self, closed: Roles, role: str) -> Opening: ...

    def end(self, closed: Roles, role: str) -> str: ...
