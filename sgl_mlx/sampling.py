"""Sampling parameters: how to continue one prompt. The one table of their names and defaults."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.json_schema import closed

GREEDY_TEMPERATURE = 1e-5
"""At or below this temperature the most likely token is taken."""


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
        logit_bias: added to the logits of these tokens: `(token id, bias)` pairs; `override` also
            takes a mapping, whose keys may be text, as JSON has them. Reported log-probabilities
            are those of the model, without it.
        ignore_eos: go on through the model's end tokens.
        seed: the noise of a sample depends on seed and position alone, never on batch mates.
        return_logprob: also return the log-probabilities of the output tokens and, from
            `logprob_start_len` on, of the prompt tokens.
        logprob_start_len: first prompt position wanted; None or -1 means none of the prompt.
        top_logprobs_num: how many likeliest alternatives to return at each position.
        return_text_in_logprobs: put each token's text into the logprob entries.
        regex: the output matches this regular expression as a whole.
        json_schema: the output is JSON that validates; a dictionary or pydantic model given to
            `override` becomes JSON text. A pydantic model's objects have its fields alone unless
            it allows others (`extra="allow"`); a plain schema leaves other keys open unless it
            says `additionalProperties: false`. No key is written twice.
        dtype: "int", "float", "str" or "bool".
        grammar: the output is a sentence of this grammar: Lark, or EBNF and GBNF, whose rules
            are defined with `::=`.
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
    logit_bias: tuple[tuple[int, float], ...] = ()
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

        SGLang's parameters without a meaning here are named in a warning.

        Raises:
            InvalidParamsError: for a name that is no sampling parameter.
        """
        names = {f.name for f in fields(self)}
        kept = _without_foreign({k: v for k, v in changes.items() if v is not None})
        unknown = sorted(set(kept) - names)
        if unknown:
            raise InvalidParamsError(
                f"unknown sampling parameter {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(sorted(names))}"
            )
        for name in ("stop", "stop_token_ids", "stop_regex"):
            if name in kept:
                kept[name] = _as_tuple(kept[name])
        if "json_schema" in kept:
            kept["json_schema"] = _schema_text(kept["json_schema"])
        if "logit_bias" in kept:
            kept["logit_bias"] = _bias_pairs(kept["logit_bias"])
        if isinstance(kept.get("dtype"), type):
            kept["dtype"] = kept["dtype"].__name__
        return replace(self, **kept)

    @property
    def greedy(self) -> bool:
        return self.temperature <= GREEDY_TEMPERATURE or self.top_k == 1

    @property
    def constrained(self) -> bool:
        """A grammar restricts the output."""
        given = (self.regex, self.json_schema, self.dtype, self.grammar)
        return any(constraint is not None for constraint in given)

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
        for name in ("seed", "logprob_start_len"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InvalidParamsError(f"{name} must be an integer, got {value!r}")
        if self.logprob_start_len is not None and self.logprob_start_len < -1:
            raise InvalidParamsError(
                f"logprob_start_len must be -1 (none) or a position, got {self.logprob_start_len}"
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
        for token, bias in self.logit_bias:
            if token < 0 or not math.isfinite(bias):
                raise InvalidParamsError(
                    f"logit_bias adds a finite number to a token id of at least 0, got "
                    f"{bias!r} for {token!r}"
                )
        if not all(isinstance(t, int) and t >= 0 for t in self.stop_token_ids):
            raise InvalidParamsError(
                f"stop_token_ids must hold token ids of at least 0, got {self.stop_token_ids!r}"
            )
        return self


_SGLANG_ONLY = frozenset(
    ["custom_params", "spaces_between_special_tokens", "stream_interval", "structural_tag"]
)


def _without_foreign(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes without SGLang's own parameters, and with its `sampling_seed` as `seed`."""
    if foreign := sorted(_SGLANG_ONLY.intersection(changes)):
        warnings.warn(f"no effect on this runtime: {', '.join(foreign)}", stacklevel=4)
    kept = {k: v for k, v in changes.items() if k not in _SGLANG_ONLY}
    if "sampling_seed" in kept:
        kept.setdefault("seed", kept.pop("sampling_seed"))
    return kept


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, (str, int)) else tuple(value)


def _bias_pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token and bias, in the order of the tokens."""
    try:
        pairs = bias.items() if isinstance(bias, Mapping) else bias
        return tuple(sorted((int(token), float(value)) for token, value in pairs))
    except (TypeError, ValueError) as e:
        raise InvalidParamsError(f"logit_bias must map token ids to numbers, got {bias!r}") from e


def _schema_text(schema: Any) -> str:
    """JSON text of a schema given as text, boolean, dictionary or pydantic model class."""
    if hasattr(schema, "model_json_schema"):
        schema = closed(schema.model_json_schema())
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        json.loads(text)
    except (TypeError, ValueError) as e:
        raise InvalidParamsError(f"json_schema is no JSON: {e}") from e
    return text


def _expect_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InvalidParamsError(f"{name} must be a number, got {value!r}")
