"""One turn of a conversation for all chat protocols: prompt, parameters, form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sgl_mlx.core import Prompt, SamplingParams, prompt_text
from sgl_mlx.server.engine import ServedTokenizer
from sgl_mlx.server.messages import Conversation
from sgl_mlx.server.output import Form, think_marks
from sgl_mlx.server.tools.calls import Tool, ToolChoice
from sgl_mlx.server.tools.families import family_of, hermes, teaches_tools
from sgl_mlx.server.tools.grammar import forced_call, thoughts_then_schema

_LESSON = """You may call functions to help with the user's query. Their signatures are:
<tools>
{}
</tools>
For each call, write a JSON object with the function's name and arguments:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


@dataclass(frozen=True)
class Turn:
    """A question to the engine, and the form of its answer."""

    prompt: Prompt | Sequence[int]
    params: SamplingParams
    form: Form


@dataclass(frozen=True)
class Wanted:
    """A turn as a client asks for it.

    Attributes:
        messages: in OpenAI's shape.
        tools: None for none.
        continues: the last message is left open.
        separate_thoughts: thoughts are taken out of the text.
        variables: for the chat template.
    """

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Tool] = ()
    choice: ToolChoice | None = None
    continues: bool = False
    separate_thoughts: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)

    def turn(self, tokenizer: ServedTokenizer) -> Turn:
        """Render the conversation, and settle how its answer is read.

        Raises:
            HttpError: for messages or tools that are wrong.
            TokenizerError: the template refuses the conversation.
        """
        choice = self.choice if self.tools else None
        tools = choice.among(self.tools) if choice else ()
        prompt = self._prompt(tokenizer, choice)
        tail = prompt_text(prompt)[-200:].rstrip()
        template = tokenizer.chat_template
        thinking = think_marks(template, tail)
        thinks_first = thinking is not None and tail.endswith(thinking[0]) and not self.continues
        end = thinking[1] if thinking and thinks_first else None
        family = None
        if choice:
            family = hermes() if choice.needed else family_of(template)
        form = Form(
            thinking if self.separate_thoughts else None,
            thinks_first,
            family,
            tools,
            choice is None or choice.several,
        )
        params = self.params
        if choice and choice.needed:
            params = _constrained(params, forced_call(tools, tokenizer, end))
        elif end and params.json_schema is not None:
            schema = msgspec.json.decode(params.json_schema)
            params = _constrained(params, thoughts_then_schema(schema, tokenizer, end))
        if not form.plain:  # the marks are special tokens in many vocabularies
            params = replace(params, skip_special_tokens=False)
        return Turn(prompt, params, form)

    def _prompt(self, tokenizer: ServedTokenizer, choice: ToolChoice | None) -> Prompt:
        messages, variables = list(self.messages), dict(self.variables)
        if choice and teaches_tools(tokenizer.chat_template):
            variables["tools"] = list(self.tools)
        elif choice:
            listed = "\n".join(msgspec.json.encode(tool).decode() for tool in self.tools)
            messages.insert(0, {"role": "system", "content": _LESSON.format(listed)})
        return Conversation(messages).prompt(tokenizer, self.continues, **variables)


def _constrained(params: SamplingParams, grammar: str) -> SamplingParams:
    return replace(params, grammar=grammar, json_schema=None, regex=None, dtype=None).validate()
