"""Contents of contexts: a text made of parts, or a chat made of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sgl_mlx.core import Completion, Generated, Parallel, Prompt, SamplingParams, Shift, Text
from sgl_mlx.protocol import parts as wire
from sgl_mlx.server.engine import ServedTokenizer
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.memory import Answers
from sgl_mlx.server.messages import Conversation, image_source
from sgl_mlx.server.openai.chat import choice_of, message_of
from sgl_mlx.server.output import Form
from sgl_mlx.server.tools.calls import checked_tools
from sgl_mlx.server.turn import Turn, Wanted
from sgl_mlx.server.visit import CacheKeys


class Addition(msgspec.Struct, kw_only=True):
    """Fields that add to a context: `text`, `parts` (see `protocol.parts`) or `messages`."""

    text: str | None = None
    parts: list[Any] | None = None
    messages: list[dict[str, Any]] | None = None

    @property
    def empty(self) -> bool:
        return self.text is None and self.parts is None and self.messages is None


class Beginning(Addition, kw_only=True):
    """Fields that a new context begins with, and the names of its part of the prefix cache."""

    cache_salt: str | None = None
    extra_key: str | None = None

    @property
    def keys(self) -> CacheKeys:
        return CacheKeys(cache_salt=self.cache_salt, extra_key=self.extra_key)


@dataclass(frozen=True)
class Plain:
    """The content of a context that is a text, made of parts.

    Attributes:
        own: index of the first part that was added since the context was forked.
    """

    parts: Prompt = ()
    own: int = 0

    def add(self, more: Addition) -> Plain:
        if more.messages is not None:
            raise bad_value("this context is a text: extend it by text or parts", "messages")
        text = (Text(more.text),) if more.text else ()
        parts = wire.decode(more.parts or [], image_source)
        return replace(self, parts=(*self.parts, *text, *parts))

    def fork(self, gap: int) -> Plain:
        """Return a copy; text that is added to the copy begins after a gap of `gap` positions."""
        shift = (Shift(gap),) if gap else ()
        return Plain((*self.parts, *shift), len(self.parts))

    def join(self, branches: Sequence[Plain], parallel: bool) -> Plain:
        """Return a copy with the parts appended that the branches added since they were forked.

        If `parallel`, the branches stand side by side in one `Parallel` part; else one after
        another, without their gaps.
        """
        added = [branch.parts[branch.own :] for branch in branches]
        if parallel:
            return replace(self, parts=(*self.parts, Parallel(tuple(filter(None, added)))))
        kept = [p for parts in added for p in parts if not isinstance(p, Shift)]
        return replace(self, parts=(*self.parts, *kept))

    def turn(self, tokenizer: ServedTokenizer, params: SamplingParams, answers: Answers) -> Turn:
        return Turn(self.parts, params, Form())

    def answered(self, completion: Completion, turn: Turn, answers: Answers) -> Plain:
        """Return a copy with the generated text appended, with its token ids."""
        said = Generated(completion.text, completion.token_ids)
        return replace(self, parts=(*self.parts, said))

    def chosen(self, text: str) -> Plain:
        return replace(self, parts=(*self.parts, Text(text)))

    def shown(self) -> dict[str, Any]:
        return {"parts": wire.encode(self.parts, str)}


@dataclass(frozen=True)
class Chat:
    """The content of a context that is a chat, rendered by the model's chat template.

    Attributes:
        tools: tools that the model may call, in OpenAI's shape.
        own: index of the first message that was added since the context was forked.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: Sequence[Any] = field(default=())
    own: int = 0

    def add(self, more: Addition) -> Chat:
        if more.text is not None or more.parts is not None:
            raise bad_value("this context is a chat: extend it by messages", "messages")
        messages = (*self.messages, *(more.messages or ()))
        Conversation(messages)  # checks them
        return replace(self, messages=messages)

    def fork(self, gap: int) -> Chat:
        if gap:
            raise bad_value("gap needs a context of text; this one is a chat", "gap")
        return replace(self, own=len(self.messages))

    def join(self, branches: Sequence[Chat], parallel: bool) -> Chat:
        """Return a copy with one more user message: the texts that the branches have added.

        A branch's texts count from where it was forked.
        """
        if parallel:
            raise bad_value("mode parallel needs contexts of text; these are chats", "mode")
        texts = (str(m.get("content") or "") for b in branches for m in b.messages[b.own :])
        joined = {"role": "user", "content": "\n\n".join(filter(None, texts))}
        return replace(self, messages=(*self.messages, joined))

    def turn(self, tokenizer: ServedTokenizer, params: SamplingParams, answers: Answers) -> Turn:
        """Render the chat into a prompt, in which earlier answers have their original tokens."""
        tools = checked_tools(self.tools)
        wanted = Wanted(self.messages, params, tools, choice_of(None, None))
        return wanted.turn(tokenizer, answers.find)

    def answered(self, completion: Completion, turn: Turn, answers: Answers) -> Chat:
        """Return a copy with the model's message; store its tokens in `answers` for later turns."""
        return self._with(message_of(turn.reader(answers).add(completion)))

    def chosen(self, text: str) -> Chat:
        return self._with({"role": "assistant", "content": text})

    def shown(self) -> dict[str, Any]:
        return {"messages": list(self.messages)}

    def _with(self, message: Mapping[str, Any]) -> Chat:
        return replace(self, messages=(*self.messages, message))


Content = Plain | Chat
