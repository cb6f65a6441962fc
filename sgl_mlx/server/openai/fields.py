"""Fields that OpenAI's completion requests share, and their sampling parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from sgl_mlx.bounds import shown
from sgl_mlx.errors import InvalidParamsError, LimitError
from sgl_mlx.json_schema import closed
from sgl_mlx.limits import Limits
from sgl_mlx.sampling import SamplingParams
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.visit import CacheKeys

_JSON_OBJECT = {"type": "object"}

NO_LIMIT = -1
"""Value of `max_tokens` with which clients of llama.cpp and LM Studio ask for no limit."""

_WORDS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "top_logprobs_num": "top_logprobs",
}
"""OpenAI's words for sampling parameters that have another name here."""


class StreamOptions(msgspec.Struct):
    """Options of a streamed answer; `continuous_usage_stats` is an addition of vLLM."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(msgspec.Struct):
    """The JSON schema in `response_format`."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """The format that the answer must have: text, any JSON object, or JSON of a schema.

    Clients of llama.cpp write a schema beside the type, instead of `json_schema`.
    """

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | bool | None = None


class StructuredOutputs(msgspec.Struct):
    """Constraints on the output in vLLM's field `structured_outputs`; at most one may be set."""

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Sampling(CacheKeys, kw_only=True):
    """Request fields that chat completions and completions share; unknown fields are ignored."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    no_stop_trim: bool | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    rid: str | None = None
    priority: int | None = None

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        return self.wants_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


_SAME = (
    *("n", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "stop_regex"),
    *("no_stop_trim", "ignore_eos", "skip_special_tokens", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "logit_bias", "seed"),
)


def sampling_params(fields: Sampling, limits: Limits, **more: Any) -> SamplingParams:
    """Return the checked sampling parameters of a request.

    Args:
        more: further parameters, which override those of the request.

    Raises:
        InvalidParamsError: a parameter is out of range, or over a limit.
        HttpError: several constraints, or a malformed constraint.
    """
    given = {name: getattr(fields, name) for name in _SAME}
    given["min_new_tokens"] = fields.min_tokens
    if fields.include_stop_str_in_output:
        given["no_stop_trim"] = True
    with in_words(_WORDS):
        made = SamplingParams().override(**{**given, **constraint(fields), **more})
        return made.validate(limits)


@contextmanager
def in_words(words: Mapping[str, str]) -> Iterator[None]:
    """Raise errors of sampling parameters again, in the words of the request.

    Args:
        words: names of request fields by the names of the sampling parameters.
    """
    try:
        yield
    except LimitError:
        raise
    except InvalidParamsError as error:
        message = str(error)
        for ours, theirs in words.items():
            message = message.replace(ours, theirs)
        raise bad_value(message, message.partition(" ")[0]) from error


def constraint(fields: Sampling) -> dict[str, Any]:
    """Return a request's output constraint, keyed by its field in `SamplingParams`.

    The result is empty if the request has no constraint.

    Raises:
        HttpError: more than one constraint is given, or a constraint is malformed.
    """
    vllm = fields.structured_outputs or StructuredOutputs()
    found = [
        ("regex", fields.regex),
        ("grammar", fields.ebnf),
        ("json_schema", fields.json_schema),
        ("json_schema", _format_schema(fields.response_format)),
        *_vllm(vllm.json, vllm.regex, vllm.choice, vllm.grammar),
        *_vllm(
            fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar
        ),
    ]
    given = [(name, value) for name, value in found if value is not None]
    if len(given) > 1:
        raise bad_value(
            f"{len(given)} constraints are given; give one of response_format, regex, ebnf, "
            "json_schema, structured_outputs or guided_*"
        )
    return dict(given)


def _vllm(
    schema: Any, regex: str | None, choice: list[str] | None, grammar: str | None
) -> list[tuple[str, Any]]:
    return [
        ("json_schema", schema),
        ("regex", regex),
        ("grammar", None if choice is None else _one_of(choice)),
        ("grammar", grammar),
    ]


def _one_of(choices: list[str]) -> str:
    """Return a Lark grammar that matches any one of the texts and nothing else."""
    if not choices or not all(choices):
        raise bad_value(
            "structured_outputs.choice and guided_choice must be a list of at least one text, "
            f"none of them empty, got {shown(choices)}"
        )
    quoted = [msgspec.json.encode(choice).decode() for choice in choices]
    return f"start: {' | '.join(quoted)}"


def _format_schema(given: ResponseFormat | None) -> Any:
    if given is None or given.type == "text":
        return None
    found = given.json_schema
    if found is None and given.schema is not None and given.type in ("json_object", "json_schema"):
        return given.schema
    if given.type == "json_object":
        return _JSON_OBJECT
    if given.type != "json_schema" or found is None:
        raise bad_value(
            "response_format must have the type text, json_object or json_schema with a "
            f"json_schema, got type {shown(given.type)} and json_schema {shown(found)}; other "
            "constraints are the fields regex, ebnf and structured_outputs",
            "response_format",
        )
    if found.schema is None:
        raise bad_value("response_format.json_schema has no schema", "response_format")
    return closed(found.schema) if found.strict else found.schema
