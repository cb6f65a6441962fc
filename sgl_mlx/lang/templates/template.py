"""A chat template of fixed strings around the content of each role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sgl_mlx.lang.templates.turns import Opening, Roles


class ChatTemplateStyle(Enum):
    """The place of system text: its own turn (PLAIN), or inside the first user turn (LLAMA2)."""

    PLAIN = auto()
    LLAMA2 = auto()


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template of fixed strings before and after each turn's content, with SGLang's fields.

    Attributes:
        name: the name under which `get_chat_template` finds a registered template.
        default_system_prompt: written first when a conversation has no system turn.
        role_prefix_and_suffix: maps a role to its (prefix, suffix); for other roles, both are "".
        stop_str: strings that end a generated turn.
        image_token: the text that stands for an image.
        audio_token: the text that stands for a recording; unused here.
        style: the place of the system text.
    """

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: Mapping[str, tuple[str, str]]
    stop_str: Sequence[str] = ()
    image_token: str = "<image>"
    audio_token: str = "<audio>"
    style: ChatTemplateStyle = ChatTemplateStyle.PLAIN

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.stop_str,) if isinstance(self.stop_str, str) else tuple(self.stop_str)

    def begin(self, closed: Roles, role: str) -> Opening:
        prefix = self._around(role)[0]
        nested = self.style is ChatTemplateStyle.LLAMA2
        if nested and role == "system" and not closed:
            return Opening(self._around("user")[0] + prefix)
        if nested and role == "user" and closed == ("system",):
            return Opening("")
        return Opening(prefix)

    def end(self, closed: Roles, role: str) -> str:
        return self._around(role)[1]

    def get_prefix_and_suffix(
        self, role: str, hist_messages: Sequence[Mapping[str, Any]]
    ) -> tuple[str, str]:
        """Return the (prefix, suffix) of a turn of `role` that follows `hist_messages`."""
        closed = tuple(m["role"] for m in hist_messages if m["content"] is not None)
        return self.begin(closed, role).text, self.end(closed, role)

    def get_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return a whole conversation as text.

        The default system prompt is added if the first turn is no system turn. A system turn whose
        content is None gets that prompt as its content. Other turns whose content is None are left
        out.
        """
        if self.default_system_prompt and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.default_system_prompt}, *messages]
        prompt = ""
        for i, message in enumerate(messages):
            content = message["content"]
            if content is None and message["role"] == "system":
                content = self.default_system_prompt
            if content is not None:
                prefix, suffix = self.get_prefix_and_suffix(message["role"], messages[:i])
                prompt += prefix + content + suffix
        return prompt

    def messages_of(self, text: str) -> list[dict[str, str]] | None:
        """Split a text into its closed turns; the reverse of `get_prompt`.

        A turn ends at the first suffix after which another turn begins or the text ends. An empty
        open assistant turn at the end is left out.

        Returns:
            Messages `{"role", "content"}`; None for text that does not consist of closed turns.
        """
        messages: list[dict[str, str]] = []
        while text:
            found = self._first_turn(text, tuple(m["role"] for m in messages))
            if found is None:
                return None
            message, text = found
            if message is not None:
                messages.append(message)
        return messages

    def _first_turn(self, text: str, closed: Roles) -> tuple[dict[str, str] | None, str] | None:
        """Return `(first turn of the text, text after it)`; None if no turn is found.

        The turn is None if the text is only an opened assistant turn.
        """
        if text == self.begin(closed, "assistant").text:
            return None, ""
        for role in self._by_prefix(closed, text):
            start = len(self.begin(closed, role).text)
            suffix = self.end(closed, role)
            end = self._end(text, start, suffix, (*closed, role))
            if end is not None:
                return {"role": role, "content": text[start:end]}, text[end + len(suffix) :]
        return None

    def _end(self, text: str, start: int, suffix: str, closed: Roles) -> int | None:
        """Return the index of the first suffix that ends a turn; None if there is no such suffix.

        The suffix ends a turn if another turn begins after it, or the text ends.
        """
        prefixes = filter(None, (self.begin(closed, r).text for r in self.role_prefix_and_suffix))
        ends = [text.find(suffix + prefix, start) for prefix in prefixes]
        if text.endswith(suffix) and len(text) - len(suffix) >= start:
            ends.append(len(text) - len(suffix))
        return min((end for end in ends if end >= 0), default=None)

    def _by_prefix(self, closed: Roles, text: str) -> list[str]:
        """Return the roles whose prefix the text starts with, the longest prefix first.

        Empty prefixes do not count, except that of a system turn at the start of a conversation.
        """
        written = {role: self.begin(closed, role).text for role in self.role_prefix_and_suffix}
        fitting = [r for r, prefix in written.items() if prefix and text.startswith(prefix)]
        if not closed and not fitting and written.get("system") == "":
            fitting = ["system"]
        return sorted(fitting, key=lambda role: -len(written[role]))

    def _around(self, role: str) -> tuple[str, str]:
        return self.role_prefix_and_suffix.get(role, ("", ""))
