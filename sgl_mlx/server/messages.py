"""Chat messages from clients, rendered into prompts by the model's own chat template.

All protocols convert their messages to OpenAI's shape before they use this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from sgl_mlx import bounds
from sgl_mlx.core import Image, Part, Prompt, Text
from sgl_mlx.errors import TokenizerError
from sgl_mlx.server.engine import ServedTokenizer
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.splice import MARKS, Recall, spliced
from sgl_mlx.server.tools.families import teaches_tools
from sgl_mlx.server.tools.lesson import as_text

Message = dict[str, Any]

_PLACE = "\ue00f"
"""Placeholder for a picture while a template renders: a private-use character."""

PLACE = "sgl_mlx.place"
"""Key of a converted message whose value is the message's path in the request, for errors."""

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_KEPT = ("name", "tool_call_id")


class Conversation:
    """A checked conversation: its messages and their pictures.

    Args:
        messages: messages in OpenAI's shape. Several system messages at the start are merged.

    Raises:
        HttpError: `messages` is empty, or a message is malformed; the error names the field.
    """

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        if not messages:
            raise bad_value("messages is empty; send at least one message", "messages")
        self._images: list[str] = []
        checked = [self._message(i, message) for i, message in enumerate(messages)]
        self._messages = _with_one_system_message(checked)

    def prompt(
        self,
        tokenizer: ServedTokenizer,
        continues: bool = False,
        recall: Recall | None = None,
        **variables: Any,
    ) -> Prompt:
        """Render the conversation with the model's chat template and return the prompt.

        If the template does not support tools, tool calls and results are written as text.

        If the template refuses the messages, they are rendered once more with every system message
        after the first message rewritten as a `<system-reminder>` in a user message.

        Args:
            continues: leave the last message open, so that the model continues its text.
            recall: finds an earlier answer that a message repeats, whose original tokens are then
                put into the prompt. Not used if `continues`.
            variables: further variables for the template.

        Raises:
            TokenizerError: the model has no chat template, or the template refuses the messages.
            HttpError: the template dropped a picture or the text to be continued.
        """

        knows_tools = teaches_tools(tokenizer.chat_template)

        def render(messages: Sequence[Message]) -> str:
            if not knows_tools:
                messages = [as_text(message) for message in messages]
            return _rendered(tokenizer, messages, continues, variables)

        messages = self._messages
        try:
            text = render(messages)
        except TokenizerError:
            messages = [_as_reminder(i, message) for i, message in enumerate(messages)]
            if messages == self._messages:
                raise
            text = render(messages)
        if recall is None or continues:
            return self._with_pictures([Text(text)])
        return self._with_pictures(spliced(text, messages, render, recall))

    def _message(self, index: int, message: Mapping[str, Any]) -> Message:
        where = message.get(PLACE, f"messages[{index}]")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise bad_value(
                f"{where}.role must be a text, got {bounds.shown(role)}", f"{where}.role"
            )
        made: Message = {"role": "system" if role == "developer" else role}
        made["content"] = self._content(f"{where}.content", message.get("content"))
        made |= {name: message[name] for name in _KEPT if message.get(name) is not None}
        if isinstance(thought := message.get("reasoning_content") or message.get("reasoning"), str):
            made["reasoning_content"] = thought
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [_call(f"{where}.tool_calls", call) for call in _listed(calls)]
        return made

    def _content(self, where: str, content: Any) -> str:
        if content is None:
            return ""
        if isinstance(content, str):
            return _clean(content)
        if not isinstance(content, list):
            raise bad_value(
                f"{where} must be a text or a list of parts, got {bounds.shown(content)}", where
            )
        return "\n".join(self._part(f"{where}[{i}]", part) for i, part in enumerate(content))

    def _part(self, where: str, part: Any) -> str:
        if isinstance(part, str):
            return _clean(part)
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS:
            text = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str):
                raise bad_value(f"{where}.text must be a text, got {bounds.shown(text)}", where)
            return _clean(text)
        if kind in _IMAGE_PARTS:
            self._images.append(image_source(where, part.get(kind) or part.get("image_url")))
            return _PLACE
        raise bad_value(
            f"{where}.type must be text or image_url, got {bounds.shown(kind)}", f"{where}.type"
        )

    def _with_pictures(self, rendered: Sequence[Part]) -> Prompt:
        parts: list[Part] = []
        shown = 0
        for part in rendered:
            if not isinstance(part, Text):
                parts.append(part)
                continue
            first, *others = part.text.split(_PLACE)
            parts.append(Text(first))
            for text in others:
                parts += [Image(self._images[shown]) if shown < len(self._images) else Text("")]
                parts.append(Text(text))
                shown += 1
        if shown != len(self._images):
            raise bad_value(
                f"the model's chat template wrote places for {shown} pictures, and the messages "
                f"have {len(self._images)}"
            )
        return tuple(part for part in parts if part != Text(""))


def image_source(where: str, given: Any) -> str:
    """Return the `data:` URL of a picture, given as the URL or as `{"url": URL}`.

    Other URLs are refused: by fetching them, the server would let clients read its host's network
    and files.

    Args:
        where: path of the request field, for the error.

    Raises:
        HttpError: `given` holds no `data:` URL.
    """
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not re.match(r"data:[^,]*,", url):
        raise bad_value(
            f"{where} must hold a data: URL (data:image/png;base64,...); pictures are not fetched "
            f"from elsewhere, got {bounds.shown(url)}",
            where,
        )
    return url


def _clean(text: str) -> str:
    """Remove this server's private-use placeholder characters from a client's text."""
    for mark in (_PLACE, *MARKS):
        text = text.replace(mark, "")
    return text


def _call(where: str, call: Any) -> dict[str, Any]:
    """Return a tool call whose arguments are decoded from JSON, as chat templates expect them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_value(f"{where} must hold calls with a function and its name", where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            arguments = {"arguments": arguments}
    return {
        "type": "function",
        "id": call.get("id"),
        "function": {"name": function["name"], "arguments": {} if arguments is None else arguments},
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _with_one_system_message(messages: list[Message]) -> list[Message]:
    leading = list(_leading_system(messages))
    if len(leading) < 2:
        return messages
    merged = "\n\n".join(message["content"] for message in leading)
    return [{"role": "system", "content": merged}, *messages[len(leading) :]]


def _leading_system(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        if message["role"] != "system":
            return
        yield message


def _as_reminder(index: int, message: Message) -> Message:
    if index == 0 or message["role"] != "system":
        return message
    text = f"<system-reminder>\n{message['content']}\n</system-reminder>"
    return {"role": "user", "content": text}


def _rendered(
    tokenizer: ServedTokenizer,
    messages: Sequence[Message],
    continues: bool,
    variables: Mapping[str, Any],
) -> str:
    asks = variables.get("add_generation_prompt", not continues)
    rest = {k: v for k, v in variables.items() if k not in ("messages", "add_generation_prompt")}
    text = tokenizer.render_chat(messages, bool(asks), **rest)
    return _up_to_last_content(text, messages[-1]["content"]) if continues else text


def _up_to_last_content(text: str, content: str) -> str:
    """Cut off the rendered text after the content of the last message.

    The template may have stripped the white space around `content`.

    Raises:
        HttpError: the text does not contain `content`.
    """
    for said in (content, content.strip()):
        at = text.rfind(said)
        if said and at >= 0:
            return text[: at + len(said)]
    raise bad_value(
        "continue_final_message: the last message has no text in the model's chat template",
        "continue_final_message",
    )
