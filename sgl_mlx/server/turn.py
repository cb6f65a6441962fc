"""One chat turn for all chat protocols: prompt, sampling parameters, and the answer's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sgl_mlx.core import Prompt, SamplingParams, prompt_text
from sgl_mlx.server.engine import ServedTokenizer
from sgl_mlx.server.memory import AnswerReader, Answers
from sgl_mlx.server.messages import PLACE, Conversation
from sgl_mlx.server.output import Form, think_marks
from sgl_mlx.server.splice import Recall
from sgl_mlx.server.tools.calls import Tool, ToolChoice
from sgl_mlx.server.tools.families import family_of, hermes, teaches_tools
from sgl_mlx.server.tools.grammar import Format, forced_call, thoughts_then_schema
from sgl_mlx.server.tools.lesson import lesson


@dataclass(frozen=True)
class Turn:
    """A prompt with its sampling parameters, and how to parse the answer.

    Attributes:
        form: how the answer is parsed into reasoning, text and tool calls.
        opening: end of the prompt, from the tag that opens the reasoning, such as `<think>`; empty
            if the prompt does not open reasoning.
    """

    prompt: Prompt | Sequence[int]
    params: SamplingParams
    form: Form
    opening: str = ""

    def reader(self, answers: Answers) -> AnswerReader:
        """Return a reader that parses one answer and stores it in `answers` at its end."""
        return AnswerReader(self.form, self.opening, answers.keep)


@dataclass(frozen=True)
class Wanted:
    """A client's chat request, in one shape for all protocols.

    Attributes:
        messages: messages in OpenAI's shape.
        params: sampling parameters.
        tools: tools that the model may call.
        choice: demands on tool calls; None for an answer without tools.
        continues: True leaves the last message open, so that the model continues its text.
        separate_thoughts: True separates reasoning from the answer's text.
        variables: variables for the chat template.
        formats: by tool name, the grammars of tools that take free text. If `choice` demands a
            call, the call's text follows its grammar.
    """

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Tool] = ()
    choice: ToolChoice | None = None
    continues: bool = False
    separate_thoughts: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    formats: Mapping[str, Format] = field(default_factory=dict)

    def turn(self, tokenizer: ServedTokenizer, recall: Recall | None = None) -> Turn:
        """Render the prompt, and decide how the answer is constrained and parsed.

        Args:
            recall: finds an earlier answer that a message repeats, to reuse the answer's tokens.

        Raises:
            HttpError: a message or the tool choice is wrong.
            TokenizerError: the model has no chat template, or the template refuses the messages.
        """
        choice = self.choice
        if not self.tools and not (choice and choice.needed):
            choice = None
        tools = choice.among(self.tools) if choice else ()
        prompt = self._prompt(tokenizer, choice, recall)
        end_of_prompt = prompt_text(prompt[-1:])[-200:]
        tail = end_of_prompt.rstrip()
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
            params = _constrained(params, forced_call(tools, tokenizer, end, self.formats))
        elif end and params.json_schema is not None:
            schema = msgspec.json.decode(params.json_schema)
            params = _constrained(params, thoughts_then_schema(schema, tokenizer, end))
        if not form.plain:  # the marks are special tokens in many vocabularies
            params = replace(params, skip_special_tokens=False)
        opening = end_of_prompt[end_of_prompt.rfind(thinking[0]) :] if thinking and end else ""
        return Turn(prompt, params, form, opening)

    def _prompt(
        self, tokenizer: ServedTokenizer, choice: ToolChoice | None, recall: Recall | None
    ) -> Prompt:
        variables = dict(self.variables)
        messages = [{PLACE: f"messages[{i}]", **m} for i, m in enumerate(self.messages)]
        if choice and teaches_tools(tokenizer.chat_template):
            variables["tools"] = list(self.tools)
        elif choice:
            messages.insert(0, lesson(self.tools))
        return Conversation(messages).prompt(tokenizer, self.continues, recall, **variables)


def _constrained(params: SamplingParams, grammar: str) -> SamplingParams:
    return replace(params, grammar=grammar, json_schema=None, regex=None, dtype=None).validate()
