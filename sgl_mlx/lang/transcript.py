"""`Transcript`: the text of one stream, as parts of a prompt and as chat turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

from sgl_mlx.core import Completion, Generated, Image, Parallel, Part, Prompt, Shift, Text, Video
from sgl_mlx.lang import pictures
from sgl_mlx.lang.templates.turns import TurnWriter


class Transcript:
    """The text that a stream has written so far. Not thread-safe.

    Attributes:
        text: the whole text, as readers see it.
        parts: the same text as parts of a prompt, for a backend.
        messages: the closed turns as `{"role", "content"}`; the content is a string, or a tuple
            of prompt parts if the turn has pictures.
        role: the role of the open turn; None if no turn is open.
        writer: returns the `TurnWriter`, which writes turns as the chat template does.
        healable: True if the text ends in text of the program, whose last token may merge with
            generated text. False after a role's prefix and after generated text.
    """

    def __init__(self, writer: Callable[[], TurnWriter]) -> None:
        self.text = ""
        self.parts: list[Part] = []
        self.messages: list[dict[str, Any]] = []
        self.role: str | None = None
        self.healable = False
        self.writer = writer
        self._role_start = self._role_part = 0
        self._owed = ""
        self._fork_part = 0

    def fork(self, gap: int = 0) -> Transcript:
        """Return an independent copy.

        Args:
            gap: number of token positions left free before what is written to the copy.
        """
        child = copy(self)
        child.parts, child.messages = list(self.parts), list(self.messages)
        child._fork_part = len(self.parts)
        if gap:
            child.parts.append(Shift(gap))
        return child

    def prompt(self) -> Prompt:
        return merged(self.parts)

    def own_prompt(self) -> Prompt:
        """Return the prompt parts written since `fork` made this transcript."""
        return merged(self.parts[self._fork_part :])

    @property
    def stop(self) -> tuple[str, ...]:
        """The stop strings that end a generated turn; none if no turn has begun yet."""
        chatting = self.role is not None or self.messages
        return self.writer().stop if chatting else ()

    def append(self, text: str, healable: bool = True) -> None:
        self.settle()
        if text:
            self._write(Text(text), healable)

    def append_generated(self, completion: Completion) -> None:
        self._owed = ""
        self._write(Generated(completion.text, completion.token_ids))

    def append_picture(self, picture: Image | Video) -> None:
        self.settle()
        before, mark, after = self._place
        self._write(Text(before))
        self.text += mark
        self.parts.append(picture)
        self._write(Text(after))

    def append_parallel(self, branches: Sequence[Prompt]) -> None:
        self.settle()
        joined = Parallel(tuple(branches))
        self.text += pictures.flat_text((joined,), self._place[1])
        self.parts.append(joined)
        self.healable = False

    def begin(self, role: str) -> None:
        writer = self.writer()
        if writer.default_system_prompt and not self.messages and role != "system":
            self.begin("system")
            self.append(writer.default_system_prompt)
            self.end()
        opening = writer.begin(self._closed, role)
        self._write(Text(opening.text))
        self.role, self._owed = role, opening.owed
        self._content_begins()

    def end(self) -> None:
        role = self.role or ""
        content: str | Prompt = self.text[self._role_start :].lstrip()
        said = merged(self.parts[self._role_part :])
        if pictures.has_pictures(said):
            content = said
        self._owed = ""
        self._write(Text(self.writer().end(self._closed, role)))
        self.messages.append({"role": role, "content": content})
        self.role = None

    def settle(self) -> None:
        """Write the `owed` text of the open turn's `Opening`, if it is not written yet."""
        if self._owed:
            owed, self._owed = self._owed, ""
            self._write(Text(owed))
            self._content_begins()

    def _content_begins(self) -> None:
        self._role_start, self._role_part = len(self.text), len(self.parts)

    @property
    def _place(self) -> tuple[str, str, str]:
        return pictures.around(self.writer().image_token)

    @property
    def _closed(self) -> tuple[str, ...]:
        return tuple(message["role"] for message in self.messages)

    def _write(self, part: Text | Generated, healable: bool = False) -> None:
        self.text += part.text
        self.parts.append(part)
        self.healable = healable


def merged(parts: Iterable[Part]) -> Prompt:
    """Return the parts with neighbouring texts joined and empty texts dropped.

    The `ends` of a joined text are the indices at which one piece ends and the next begins.
    """
    prompt: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and prompt and isinstance(prompt[-1], Text):
            before = prompt[-1]
            ends = (*before.ends, len(before.text)) if part.text else before.ends
            prompt[-1] = Text(before.text + part.text, ends)
        elif part not in (Text(""), Generated("")):
            prompt.append(part)
    return tuple(prompt)
