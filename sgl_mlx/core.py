"""The nouns every part shares. Standard library only; knows no model, no runtime, no language.

A *prompt* is a tuple of parts (`Text`, `Generated`, `Shift`, `Parallel`). A request is a prompt
with `SamplingParams`; its answer is one `Completion` per sample. `select` asks for `ChoiceScores`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from sgl_mlx.errors import InvalidParamsError

GREEDY_TEMPERATURE = 1e-5
"""At or below this temperature the most likely token is taken."""


# ---------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Plain text of a prompt; special tokens written in it are recognised."""

    text: str


@dataclass(frozen=True)
class Generated:
    """Text that a model wrote, with the tokens it chose, so that their KV is found again."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shift:
    """The parts after it stand `gap` positions further on than they would."""

    gap: int


@dataclass(frozen=True)
class Parallel:
    """Branches encoded independently after the same preceding parts (parallel context windows).

    Their keys and values stand side by side; what follows sees all of them and continues at the
    position after the longest branch.
    """

    branches: tuple[Prompt, ...]


Part = Text | Generated | Shift | Parallel
Prompt = tuple[Part, ...]


def prompt_text(prompt: Prompt) -> str:
    """All text of a prompt, the branches of a `Parallel` one after another."""
    pieces = []
    for part in prompt:
        if isinstance(part, (Text, Generated)):
            pieces.append(part.text)
        elif isinstance(part, Parallel):
            pieces.extend(prompt_text(branch) for branch in part.branches)
    return "".join(pieces)


# ---------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one prompt. Names and defaults are SGLang's.

    Args:
        max_new_tokens: stop after so many tokens; 0 computes the prompt only.
        min_new_tokens: no end-of-sequence or stop token before so many tokens.
        n: how many independent samples.
        stop: strings that end the output; they are trimmed from it.
        stop_token_ids: tokens that end the output, besides the model's own end tokens.
        stop_regex: patterns that end the output.
        temperature: 0 (or up to 1e-5) takes the most likely token.
        top_p: keep the smallest set of tokens with this probability mass, in (0, 1].
        top_k: keep so many most likely tokens; -1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest, in [0, 1].
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted once from the logit of every token generated before.
        repetition_penalty: divides (positive) or multiplies (negative) logits of tokens in
            prompt and output; 1 switches it off.
        ignore_eos: go on through the model's end tokens.
        seed: the noise of a sample depends on seed and position alone, never on batch mates.
        return_logprob: also return the log-probabilities of the output tokens and, from
            `logprob_start_len` on, of the prompt tokens.
        logprob_start_len: first prompt position wanted; None or -1 means none of the prompt.
        top_logprobs_num: how many likeliest alternatives to return at each position.
        return_text_in_logprobs: put each token's text into the logprob entries.
        regex: the output matches this regular expression as a whole.
        json_schema: the output is JSON that validates; a dictionary or pydantic model given to
            `override` becomes JSON text.
        dtype: "int", "float", "str" or "bool".
        grammar: the output is a sentence of this Lark grammar.
        token_healing: the last token of the prompt may merge with the output.
        skip_special_tokens: leave special tokens out of the text.
        no_stop_trim: keep a matched stop string in the text.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    seed: int | None = None
    return_logprob: bool = False
    logprob_start_len: int | None = None
    top_logprobs_num: int = 0
    return_text_in_logprobs: bool = False
    regex: str | None = None
    json_schema: str | None = None
    dtype: str | None = None
    grammar: str | None = None
    token_healing: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any] | SamplingParams | None) -> SamplingParams:
        """Params from a mapping of field names; unknown names raise `InvalidParamsError`."""
        if isinstance(values, SamplingParams):
            return values
        return cls().override(**dict(values or {}))

    def override(self, **changes: Any) -> SamplingParams:
        """A copy with every change that is not None; strings and lists become tuples.

        Raises:
            InvalidParamsError: for a name that is no sampling parameter.
        """
        names = {f.name for f in fields(self)}
        unknown = sorted(set(changes) - names)
        if unknown:
            raise InvalidParamsError(
                f"unknown sampling parameter {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(sorted(names))}"
            )
        kept = {k: v for k, v in changes.items() if v is not None}
        for name in ("stop", "stop_token_ids", "stop_regex"):
            if name in kept:
                kept[name] = _as_tuple(kept[name])
        if "json_schema" in kept:
            kept["json_schema"] = _schema_text(kept["json_schema"])
        if isinstance(kept.get("dtype"), type):
            kept["dtype"] = kept["dtype"].__name__
        return replace(self, **kept)

    @property
    def greedy(self) -> bool:
        return self.temperature <= GREEDY_TEMPERATURE or self.top_k == 1

    @property
    def constrained(self) -> bool:
        """A grammar restricts the output."""
        return any((self.regex, self.json_schema, self.dtype, self.grammar))

    def validate(self) -> SamplingParams:
        """Return self, or raise `InvalidParamsError` naming the field, its value and the range."""
        for name, low, high in (
            ("max_new_tokens", 0, math.inf),
            ("min_new_tokens", 0, math.inf),
            ("n", 1, math.inf),
            ("temperature", 0.0, math.inf),
            ("min_p", 0.0, 1.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
            ("top_logprobs_num", 0, math.inf),
        ):
            value = getattr(self, name)
            _expect_number(name, value)
            if not low <= value <= high or math.isinf(value):
                raise InvalidParamsError(f"{name} must be in [{low}, {high}], got {value!r}")
        for name in ("max_new_tokens", "min_new_tokens", "n", "top_k", "top_logprobs_num"):
            if not isinstance(getattr(self, name), int):
                raise InvalidParamsError(f"{name} must be an integer, got {getattr(self, name)!r}")
        _expect_number("top_p", self.top_p)
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidParamsError(f"top_p must be in (0, 1], got {self.top_p!r}")
        if self.top_k < 1 and self.top_k != -1:
            raise InvalidParamsError(f"top_k must be -1 (all) or at least 1, got {self.top_k!r}")
        _expect_number("repetition_penalty", self.repetition_penalty)
        if not 0.0 < self.repetition_penalty < math.inf:
            raise InvalidParamsError(
                f"repetition_penalty must be positive, got {self.repetition_penalty!r}"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidParamsError(
                f"min_new_tokens ({self.min_new_tokens}) is larger than "
                f"max_new_tokens ({self.max_new_tokens})"
            )
        if not all(isinstance(s, str) and s for s in self.stop):
            raise InvalidParamsError(f"stop must hold non-empty strings, got {self.stop!r}")
        for pattern in self.stop_regex:
            try:
                re.compile(pattern)
            except re.error as e:
                raise InvalidParamsError(
                    f"stop_regex {pattern!r} at position {e.pos}: {e.msg}"
                ) from e
        if not all(isinstance(t, int) and t >= 0 for t in self.stop_token_ids):
            raise InvalidParamsError(
                f"stop_token_ids must hold token ids of at least 0, got {self.stop_token_ids!r}"
            )
        return self


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, (str, int)) else tuple(value)


def _schema_text(schema: Any) -> str:
    """JSON text of a schema given as text, dictionary or pydantic model class."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    return schema if isinstance(schema, str) else json.dumps(schema)


def _expect_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InvalidParamsError(f"{name} must be a number, got {value!r}")


# ---------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishReason:
    """Why an output ended; `matched` is the stop string or token id, `length` the token limit."""

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None
    length: int | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token given all before it; None for the very first of a prompt."""

    logprob: float | None
    token_id: int
    text: str | None = None

    def to_list(self) -> list[Any]:
        return [self.logprob, self.token_id, self.text]


@dataclass(frozen=True)
class Logprobs:
    """`input` covers the prompt from the start asked for, `output` the generated tokens.

    `input_top[i]` and `output_top[i]` are the likeliest tokens at the same position, best first.
    """

    input: tuple[TokenLogprob, ...] = ()
    output: tuple[TokenLogprob, ...] = ()
    input_top: tuple[tuple[TokenLogprob, ...], ...] = ()
    output_top: tuple[tuple[TokenLogprob, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "input_token_logprobs": [t.to_list() for t in self.input],
            "output_token_logprobs": [t.to_list() for t in self.output],
            "input_top_logprobs": [[t.to_list() for t in row] for row in self.input_top],
            "output_top_logprobs": [[t.to_list() for t in row] for row in self.output_top],
        }


@dataclass(frozen=True)
class Completion:
    """One sample: its text and tokens, and what computing it took."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    id: str = ""
    logprobs: Logprobs | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def meta_info(self) -> dict[str, Any]:
        """SGLang's `meta_info` dictionary."""
        meta: dict[str, Any] = {
            "id": self.id,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.token_ids),
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.finish_reason.to_dict(),
            **self.extra,
        }
        if self.logprobs is not None:
            meta.update(self.logprobs.to_dict())
        return meta


@dataclass(frozen=True)
class ChoiceScore:
    """One choice after a prompt: log-probabilities of its tokens.

    `tokens` starts where the tokens of prompt + choice leave the tokens of the prompt alone, so a
    prompt token that merges with the choice counts (token healing). `unconditional` holds the
    same tokens scored without the prompt, if asked for.
    """

    text: str
    tokens: tuple[TokenLogprob, ...]
    unconditional: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class ChoiceScores:
    """What `select` decides on; `prompt_tokens` and `cached_tokens` are of the prompt alone."""

    choices: Sequence[ChoiceScore]
    prompt_tokens: int
    cached_tokens: int
