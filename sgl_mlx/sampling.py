"""Sampling parameters: how to continue one prompt. The one table of their names and defaults."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sgl_mlx import bounds, names
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.json_schema import closed, unwrapped

GREEDY_TEMPERATURE = 1e-5
"""At or below this temperature the most likely token is taken."""


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one prompt. Names and defaults are SGLang's.

    Args:
        max_new_tokens: stop after so many tokens; 0 computes the prompt only.
        min_new_tokens: no end-of-sequence or stop token before so many tokens.
        n: how many independent samples, at most 1024.
        stop: strings that end the output; they are trimmed from it.
        stop_token_ids: tokens that end the output, besides the model's own end tokens.
        stop_regex: patterns that end the output; those that backtrack without end abort it.
        temperature: 0 (or up to 1e-5) takes the most likely token.
        top_p: keep the smallest set of tokens with this probability mass, in (0, 1].
        top_k: keep so many most likely tokens, below 2**31; -1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest, in [0, 1].
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted once from the logit of every token generated before.
        repetition_penalty: divides (positive) or multiplies (negative) logits of tokens in
            prompt and output; 1 switches it off, in [0.001, 1000].
        logit_bias: added to the logits of these tokens: `(token id, bias)` pairs; `override` also
            takes a mapping, whose keys may be text, as JSON has them. Reported log-probabilities
            are those of the model, without it.
        ignore_eos: go on through the model's end tokens.
        seed: the noise of a sample depends on seed and position alone, never on batch mates.
        return_logprob: also return the log-probabilities of the output tokens and, from
            `logprob_start_len` on, of the prompt tokens.
        logprob_start_len: first prompt position wanted; None or -1 means none of the prompt.
        top_logprobs_num: how many likeliest alternatives to return at each position, at most 128.
        return_text_in_logprobs: put each token's text into the logprob entries.
        regex: the output matches this regular expression as a whole.
        json_schema: the output is JSON that validates; a dictionary or pydantic model given to
            `override` becomes JSON text. A pydantic model's objects have its fields alone unless
            it allows others (`extra="allow"`), and so have those of OpenAI's `response_format`
            with `strict`; a plain schema leaves other keys open unless it says
            `additionalProperties: false`. No key is written twice, no number is endless.
        dtype: "int", "float", "str" or "bool".
        grammar: the output is a sentence of this grammar: Lark, or EBNF and GBNF, whose rules
            are defined with `::=`.
        ebnf: the same for EBNF and GBNF alone, by SGLang's name.
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
    ebnf: str | None = None
    token_healing: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any] | SamplingParams | None) -> SamplingParams:
        """Return parameters by name; raises `InvalidParamsError` for an unknown name."""
        if isinstance(values, SamplingParams):
            return values
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            bounds.refuse("sampling_params", values, "a dictionary")
        if not all(isinstance(name, str) for name in values):
            names.only(_KIND, values, _RULES)
        return cls().override(**values)

    def override(self, **changes: Any) -> SamplingParams:
        """Return a copy with every change that is not None; strings and lists become tuples.

        SGLang's parameters without a meaning here are named in a warning.

        Raises:
            InvalidParamsError: for a name that is no sampling parameter.
        """
        kept = _without_foreign({k: v for k, v in changes.items() if v is not None})
        if not kept.keys() <= _RULES.keys():
            names.only(_KIND, kept, _RULES)
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
        """True when a grammar restricts the output."""
        given = (self.regex, self.json_schema, self.dtype, self.grammar, self.ebnf)
        return any(grammar is not None for grammar in given)

    def validate(self) -> SamplingParams:
        """Return these parameters with numpy's scalars as Python's, each checked.

        Raises:
            InvalidParamsError: naming the parameter, its value and what would be right.
        """
        checked = {name: rule(name, getattr(self, name)) for name, rule in _RULES.items()}
        if checked["min_new_tokens"] > checked["max_new_tokens"]:
            raise InvalidParamsError(
                f"min_new_tokens ({self.min_new_tokens}) is larger than "
                f"max_new_tokens ({self.max_new_tokens})"
            )
        return SamplingParams(**checked)


_KIND = "sampling parameter"
_SGLANG_ONLY = frozenset(
    ["custom_params", "spaces_between_special_tokens", "stream_interval", "structural_tag"]
)


def _without_foreign(changes: dict[str, Any]) -> dict[str, Any]:
    """Drop SGLang's own parameters from changes, and call its `sampling_seed` `seed`."""
    if foreign := sorted(_SGLANG_ONLY.intersection(changes)):
        warnings.warn(f"no effect on this runtime: {', '.join(foreign)}", stacklevel=4)
    kept = {k: v for k, v in changes.items() if k not in _SGLANG_ONLY}
    if "sampling_seed" in kept:
        kept.setdefault("seed", kept.pop("sampling_seed"))
    return kept


_RULES: dict[str, bounds.Rule] = {
    "max_new_tokens": bounds.integer(0, bounds.INT64),
    "min_new_tokens": bounds.integer(0, bounds.INT64),
    "n": bounds.integer(1, 1024),
    "stop": bounds.items(bounds.filled_text),
    "stop_token_ids": bounds.items(bounds.integer(0, bounds.INT32)),
    "stop_regex": bounds.items(bounds.pattern),
    "temperature": bounds.number(0, 1e6),
    "top_p": bounds.number(0, 1, above=True),
    "top_k": bounds.integer(1, bounds.INT32, also=-1),
    "min_p": bounds.number(0, 1),
    "frequency_penalty": bounds.number(-2, 2),
    "presence_penalty": bounds.number(-2, 2),
    "repetition_penalty": bounds.number(1e-3, 1e3),
    "logit_bias": bounds.biases,
    "ignore_eos": bounds.flag,
    "seed": bounds.optional(bounds.integer(-bounds.INT64, bounds.INT64)),
    "return_logprob": bounds.flag,
    "logprob_start_len": bounds.optional(bounds.integer(-1, bounds.INT64)),
    "top_logprobs_num": bounds.integer(0, 128),
    "return_text_in_logprobs": bounds.flag,
    "regex": bounds.optional(bounds.text),
    "json_schema": bounds.optional(bounds.filled_text),
    "dtype": bounds.optional(bounds.filled_text),
    "grammar": bounds.optional(bounds.filled_text),
    "ebnf": bounds.optional(bounds.filled_text),
    "token_healing": bounds.flag,
    "skip_special_tokens": bounds.flag,
    "no_stop_trim": bounds.flag,
}


def _as_tuple(value: Any) -> Any:
    """Return one text or number as a tuple of it; `validate` refuses what is no list."""
    found = bounds.listed(value)
    if found is not None:
        return tuple(found)
    return value if isinstance(value, Mapping) else (value,)


def _bias_pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Return pairs of token and bias, in the order of the tokens."""
    try:
        pairs = bias.items() if isinstance(bias, Mapping) else bias
        return tuple(sorted((_token(token), value) for token, value in pairs))
    except (TypeError, ValueError) as e:
        raise InvalidParamsError(
            f"logit_bias must map token ids to numbers, got {bounds.shown(bias)}"
        ) from e


def _token(key: Any) -> Any:
    """Return a token id, which JSON has as text."""
    return int(key) if isinstance(key, str) else key


def _schema_text(schema: Any) -> str:
    """Return the JSON text of a schema: text, a dictionary, a truth value or a pydantic model."""
    if hasattr(schema, "model_json_schema"):
        schema = closed(schema.model_json_schema())
    if isinstance(schema, str):
        schema = bounds.text("json_schema", schema)
    try:
        given = json.loads(schema) if isinstance(schema, str) else schema
        found = unwrapped(given)
        text = schema if isinstance(schema, str) and found is given else json.dumps(found)
    except (TypeError, ValueError, RecursionError) as e:
        raise InvalidParamsError(f"json_schema is no JSON: {e}") from e
    if not isinstance(found, (Mapping, bool)):
        raise InvalidParamsError(
            f"json_schema must be an object, true or false in JSON, got {text[:80]}"
        )
    bounds.readable("json_schema", found)
    return text
