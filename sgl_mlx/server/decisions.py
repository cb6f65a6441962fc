"""`/v1/decisions`, as in OpenAI's API: typed questions about one input, answered by probabilities.

All questions of a request are scored in one batch. Their prompts begin with the same input, so the
input is computed only once. Options may have any number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.core import ChoiceScores, Prompt, SamplingParams, Text, prompt_text
from sgl_mlx.errors import TokenizerError
from sgl_mlx.limits import Limits
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.choosing import Chosen, choose, method_named
from sgl_mlx.server.doctor.history import shared as shared_prefix
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.messages import Conversation
from sgl_mlx.server.openai.responses_input import Toolbox, messages_of
from sgl_mlx.server.output import think_marks
from sgl_mlx.server.service import Service, in_thread, new_id
from sgl_mlx.server.sse import while_connected
from sgl_mlx.server.visit import CacheKeys, Visit

Instructions = str | list[dict[str, Any]]


class Predicate(msgspec.Struct, tag_field="type", tag="predicate"):
    """A statement about the input; the answer is the probability that it is true."""

    instructions: Instructions
    name: str | None = None

    @property
    def options(self) -> list[str]:
        return ["Yes", "No"]

    @property
    def ending(self) -> str:
        return "Is this true? Answer Yes or No."

    def answer(self, chosen: Chosen) -> dict[str, Any]:
        return {"probability": chosen.probabilities[0]}


class Option(msgspec.Struct):
    """One option of a choice."""

    value: str | bool
    description: str | None = None


class Choice(msgspec.Struct, tag_field="type", tag="choice"):
    """A question with unordered options; the answer is one of them."""

    instructions: Instructions
    choices: list[Option]
    name: str | None = None

    @property
    def options(self) -> list[str]:
        return [o.value if isinstance(o.value, str) else str(o.value).lower() for o in self.choices]

    @property
    def ending(self) -> str:
        told = zip(self.options, [o.description for o in self.choices], strict=True)
        return f"Answer with one of these:\n{_list(told)}"

    def answer(self, chosen: Chosen) -> dict[str, Any]:
        pairs = zip(self.choices, chosen.probabilities, strict=True)
        return {
            "choice": self.choices[chosen.index].value,
            "confidence": chosen.probabilities[chosen.index],
            "probabilities": [{"value": o.value, "probability": p} for o, p in pairs],
        }


class Level(msgspec.Struct):
    """One level of a score."""

    label: str
    description: str | None = None


class Score(msgspec.Struct, tag_field="type", tag="score"):
    """A question with ordered levels, the lowest first; the answer is the expected level."""

    instructions: Instructions
    levels: list[Level]
    name: str | None = None

    @property
    def options(self) -> list[str]:
        return [level.label for level in self.levels]

    @property
    def ending(self) -> str:
        told = ((level.label, level.description) for level in self.levels)
        return f"Answer with one of these levels, the lowest first:\n{_list(told)}"

    def answer(self, chosen: Chosen) -> dict[str, Any]:
        probabilities = chosen.probabilities
        return {
            "score": sum(i * p for i, p in enumerate(probabilities)),
            "confidence": max(probabilities),
            "probabilities": [
                {"value": i, "label": level.label, "probability": p}
                for i, (level, p) in enumerate(zip(self.levels, probabilities, strict=True))
            ],
        }


Question = Predicate | Choice | Score


class DecisionsRequest(CacheKeys, kw_only=True):
    """The body of `/v1/decisions`; unknown fields are ignored.

    `choices_method` is not OpenAI's: it names one of the methods in `choosing.METHODS`.
    """

    input: str | list[Any]
    questions: list[Question]
    model: str | None = None
    choices_method: str | None = None
    priority: int | None = None


def routes(service: Service) -> list[Route]:
    """Return the route `/v1/decisions`."""

    async def decisions(request: Request) -> Response:
        fields = await service.read(request, DecisionsRequest)
        visit = Visit(service, request, fields)
        told = await while_connected(request.receive, _decide(visit, fields))
        response = json_response(told)
        response.headers["x-sgl-cache"] = visit.cache_header or ""
        return response

    return [Route("/v1/decisions", decisions, methods=["POST"])]


async def _decide(visit: Visit, fields: DecisionsRequest) -> dict[str, Any]:
    _check(fields.questions, visit.service.limits)
    model = visit.service.model(fields.model)
    method = method_named(fields.choices_method)
    prompts, spaced = await in_thread(_prompts, visit.service, fields)
    rid = new_id("decision-")
    asks = [
        Ask(
            prompt,
            SamplingParams(),
            f"{rid}-{i}",
            fields.priority or 0,
            choices=tuple(spaced + option for option in question.options),
            unconditional=method.requires_unconditional_logprobs,
        )
        for i, (prompt, question) in enumerate(zip(prompts, fields.questions, strict=True))
    ]
    scores = await visit.scores(asks)
    pairs = zip(fields.questions, scores, strict=True)
    return {
        "answers": [
            {"type": q.__struct_config__.tag, "name": q.name, **q.answer(choose(method, s))}
            for q, s in pairs
        ],
        "model": model,
        "usage": await in_thread(_usage, visit.service, prompts, scores),
    }


def _check(questions: Sequence[Question], limits: Limits) -> None:
    if not questions:
        raise bad_value("questions is empty; send at least one question", "questions")
    for i, question in enumerate(questions):
        options, where = question.options, f"questions[{i}]"
        limits.check("max_options", len(options), f"{where} has {len(options):,} options")
        if len(options) < 2:
            raise bad_value(f"{where} must have at least 2 options, got {len(options)}", where)
        if not all(options) or len(set(options)) < len(options):
            raise bad_value(f"{where} must have options that are not empty and differ", where)


def _prompts(service: Service, fields: DecisionsRequest) -> tuple[list[Prompt], str]:
    """Return the prompt of each question, and the text to put between a prompt and an option."""
    tokenizer = service.engine.tokenizer
    messages = [_readable(m) for m in messages_of(fields.input, None, Toolbox(()))]
    asked = [_with_question(messages, question) for question in fields.questions]
    try:
        prompts = [
            Conversation(m).prompt(tokenizer, enable_thinking=False, add_generation_prompt=True)
            for m in asked
        ]
    except TokenizerError:
        if tokenizer.chat_template is not None:
            raise
        return [(Text(f"{_flat(m)}\nAnswer:"),) for m in asked], " "
    return [_after_thoughts(prompt, tokenizer.chat_template) for prompt in prompts], ""


def _readable(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose `input_json` parts are turned into text parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_readable_part(part) for part in content]}


def _readable_part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "input_json":
        return {"type": "text", "text": msgspec.json.encode(part.get("data")).decode()}
    return part


def _with_question(messages: Sequence[dict[str, Any]], question: Question) -> list[dict[str, Any]]:
    """Return messages that end with a question: in the last one if it is the user's, else apart."""
    if isinstance(question.instructions, str):
        asked: list[Any] = [f"\n{question.instructions}"]
    else:
        asked = [_readable_part(part) for part in question.instructions]
    asked.append(question.ending)
    if not messages or messages[-1].get("role") != "user":
        return [*messages, {"role": "user", "content": asked}]
    *earlier, last = messages
    content = last["content"] if isinstance(last["content"], list) else [last["content"]]
    return [*earlier, {**last, "content": [*content, *asked]}]


def _flat(messages: Sequence[dict[str, Any]]) -> str:
    """Return a conversation as plain text, for a model without a chat template."""
    parts = [
        part
        for message in messages
        for part in (
            message["content"] if isinstance(message["content"], list) else [message["content"]]
        )
    ]
    return "\n".join(p if isinstance(p, str) else str((p or {}).get("text", "")) for p in parts)


def _after_thoughts(prompt: Prompt, template: str | None) -> Prompt:
    """Close the reasoning that a prompt opens at its end, so that the answer comes next."""
    tail = prompt_text(prompt[-1:]).rstrip()
    marks = think_marks(template, tail)
    if marks is None or not tail.endswith(marks[0]):
        return prompt
    return (*prompt, Text(f"{marks[1]}\n\n"))


def _list(options: Any) -> str:
    return "\n".join(f"- {label}" + (f": {told}" if told else "") for label, told in options)


def _usage(
    service: Service, prompts: Sequence[Prompt], scores: Sequence[ChoiceScores]
) -> dict[str, Any]:
    """Return a request's `usage`, counting the prompts' common beginning once.

    The tokens of the choices count as input, since nothing is generated.
    """
    texts = [prompt_text(prompt) for prompt in prompts]
    common = min(texts)[: shared_prefix(min(texts), max(texts))]
    shared = len(service.engine.tokenizer.encode(common)) if len(prompts) > 1 else 0
    shared = min(shared, *(score.prompt_tokens for score in scores))
    own = sum(s.prompt_tokens - shared + sum(len(c.tokens) for c in s.choices) for s in scores)
    cached = min(score.cached_tokens for score in scores)
    return {
        "input_tokens": shared + own,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": shared + own,
    }
