"""`SamplingParams`: the names, defaults and checks of all sampling parameters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sgl_mlx import bounds, names
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.json_schema import closed, unwrapped
from sgl_mlx.limits import UNLIMITED, Limits

GREEDY_TEMPERATURE = 1e-5
"""At or below this temperature, sampling is greedy: it takes the most likely token."""


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of how a model continues one prompt. Names and defaults are SGLang's.

    Args:
        max_new_tokens: stop after this many tokens; 0 only computes the prompt.
        min_new_tokens: generate no end-of-sequence or stop token before this many tokens.
        n: the number of independent samples.
        stop: strings that end the output. A matched string is cut off the output.
        stop_token_ids: tokens that end the output, besides the model's own end tokens.
        stop_regex: patterns that end the output. A pattern that backtracks too long aborts the
            request.
        temperature: randomness of the choice; 0 to 1e-5 always takes the most likely token.
        top_p: keep the smallest set of likeliest tokens with at least this probability mass, in
            (0, 1].
        top_k: keep this many most likely tokens, below 2**31; -1 keeps all.
        min_p: drop tokens whose probability is below this share of the highest, in [0, 1].
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted once from the logit of every token that was generated already.
        repetition_penalty: for each token in prompt or output, a positive logit is divided and a
            negative logit multiplied by this, in [0.001, 1000]; 1 has no effect.
        logit_bias: `(token id, bias)` pairs; each bias is added to the logit of its token.
            `override` also takes a mapping, whose keys may be text as in JSON. Reported
            log-probabilities do not include the bias.
        ignore_eos: do not end the output at the model's end tokens.
        seed: seed of the random numbers; None takes a new one. A sample with a seed does not
            depend on other requests in the batch.
        return_logprob: also return the log-probabilities of the output tokens and, from
            `logprob_start_len` on, of the prompt tokens.
        logprob_start_len: the first prompt position with log-probabilities; None or -1 returns
            none for the prompt.
        top_logprobs_num: the number of most likely tokens to return at each position.
        return_text_in_logprobs: put each token's text into the logprob entries.
        regex: the whole output matches this regular expression.
        json_schema: the output is JSON that validates against this schema. `override` also takes
            a dictionary, a pydantic model or `TypeAdapter`, or OpenAI's `response_format`. A
            pydantic model, or a `strict` response format, allows no other keys than its own (for
            a model, unless it says `extra="allow"`). A plain schema allows other keys unless it
            says `additionalProperties: false`. No key is repeated, and the length of numbers is
            limited.
        dtype: the output is one value of this type: "int", "float", "str" or "bool".
        grammar: the output is derived from this grammar, written in Lark, or in EBNF or GBNF
            with `::=`.
        ebnf: like `grammar`, but EBNF or GBNF only; SGLang's parameter.
        token_healing: the last token of the prompt may be replaced by a longer token that begins
            with the same text.
        skip_special_tokens: leave special tokens out of the text.
        no_stop_trim: keep a matched stop string in the text.
        speculate: let the engine draft tokens and verify several in one step, if its own
            option `speculate` is not "off". The output is the same either way.
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
    speculate: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any] | SamplingParams | None) -> SamplingParams:
        """Return parameters from a mapping of names to values; None gives the defaults.

        A `SamplingParams` is returned as it is. Values are converted and checked as in `override`.

        Raises:
            InvalidParamsError: `values` is no mapping, has an unknown name, or has a `json_schema`
                or `logit_bias` that cannot be converted.
        """
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
        """Return a copy with these parameters changed; a parameter given as None is not changed.

        Stop strings, stop patterns and stop token ids, single or in lists, become tuples. Schemas
        become JSON text, and biases become pairs. All other values are stored as given: `validate`
        checks them. Parameters of SGLang that this runtime lacks are dropped with a warning.

        Raises:
            InvalidParamsError: for a name that is no sampling parameter, or for a `json_schema`
                or `logit_bias` that cannot be converted.
        """
        kept = _without_foreign({k: v for k, v in changes.items() if v is not None})
        if not kept.keys() <= _RULES.keys():
            names.only(_KIND, kept, _RULES)
        for name in ("stop", "stop_token_ids", "stop_regex"):
            if name in kept:
                kept[name] = _as_tuple(kept[name])
        if "regex" in kept:
            kept["regex"] = bounds.pattern_text(kept["regex"])
        if "stop_regex" in kept:
            kept["stop_regex"] = tuple(map(bounds.pattern_text, kept["stop_regex"]))
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
        """True if one of `regex`, `json_schema`, `dtype`, `grammar` and `ebnf` is given."""
        given = (self.regex, self.json_schema, self.dtype, self.grammar, self.ebnf)
        return any(grammar is not None for grammar in given)

    def validate(self, limits: Limits = UNLIMITED) -> SamplingParams:
        """Return a copy in which every value is checked and converted to Python's own types.

        Raises:
            InvalidParamsError: a value is wrong. The message names the parameter, its value and
                what would be right.
            LimitError: a value is over one of the `limits`.
        """
        _check_patterns(self.stop_regex, limits)
        checked = {name: rule(name, getattr(self, name)) for name, rule in _RULES.items()}
        if checked["min_new_tokens"] > checked["max_new_tokens"]:
            raise InvalidParamsError(
                f"min_new_tokens ({self.min_new_tokens}) is larger than "
                f"max_new_tokens ({self.max_new_tokens})"
            )
        made = SamplingParams(**checked)
        made._check(limits)
        return made

    def _check(self, limits: Limits) -> None:
        """Raise `LimitError` for a checked value that is over its limit."""
        bounds.within(limits, "max_n", self.n, f"n is {self.n:,}")
        tops = self.top_logprobs_num
        bounds.within(limits, "max_logprobs", tops, f"top_logprobs_num is {tops:,}")
        biases = len(self.logit_bias)
        bounds.within(limits, "max_logit_bias", biases, f"logit_bias has {biases:,} tokens")
        stops = len(self.stop) + len(self.stop_token_ids) + len(self.stop_regex)
        bounds.within(limits, "max_stops", stops, f"{stops:,} stops are given")
        longest = max(map(len, self.stop), default=0)
        bounds.within(limits, "max_stop_chars", longest, f"a stop has {longest:,} characters")
        for name in ("regex", "json_schema", "grammar", "ebnf"):
            size = len(getattr(self, name) or "")
            bound = "max_regex_chars" if name == "regex" else "max_grammar_chars"
            bounds.within(limits, bound, size, f"{name} has {size:,} characters")


def _check_patterns(patterns: Any, limits: Limits) -> None:
    """Raise `LimitError` for a pattern that is too long, before any is compiled."""
    for pattern in patterns if isinstance(patterns, tuple) else ():
        size = len(pattern) if isinstance(pattern, str) else 0
        bounds.within(limits, "max_regex_chars", size, f"stop_regex has {size:,} characters")


_KIND = "sampling parameter"
_SCHEMAS = "JSON text, a dictionary of JSON values, a pydantic model or pydantic.TypeAdapter(type)"
_SGLANG_ONLY = frozenset(
    ["custom_params", "spaces_between_special_tokens", "stream_interval", "structural_tag"]
)


def _without_foreign(changes: dict[str, Any]) -> dict[str, Any]:
    """Drop SGLang's parameters that have no effect here, and rename `sampling_seed` to `seed`."""
    if foreign := sorted(_SGLANG_ONLY.intersection(changes)):
        warnings.warn(f"no effect on this runtime: {', '.join(foreign)}", stacklevel=4)
    kept = {k: v for k, v in changes.items() if k not in _SGLANG_ONLY}
    if "sampling_seed" in kept:
        kept.setdefault("seed", kept.pop("sampling_seed"))
    return kept


_RULES: dict[str, bounds.Rule] = {
    "max_new_tokens": bounds.integer(0, bounds.INT64),
    "min_new_tokens": bounds.integer(0, bounds.INT64),
    "n": bounds.integer(1, bounds.INT32),
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
    "top_logprobs_num": bounds.integer(0, bounds.INT32),
    "return_text_in_logprobs": bounds.flag,
    "regex": bounds.optional(bounds.text),
    "json_schema": bounds.optional(bounds.filled_text),
    "dtype": bounds.optional(bounds.filled_text),
    "grammar": bounds.optional(bounds.filled_text),
    "ebnf": bounds.optional(bounds.filled_text),
    "token_healing": bounds.flag,
    "skip_special_tokens": bounds.flag,
    "no_stop_trim": bounds.flag,
    "speculate": bounds.flag,
}


def _as_tuple(value: Any) -> Any:
    """Return a list as a tuple, a single value as a tuple of one, and a mapping as it is.

    `validate` later refuses the mapping.
    """
    found = bounds.listed(value)
    if found is not None:
        return tuple(found)
    return value if isinstance(value, Mapping) else (value,)


def _bias_pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Return a mapping or a list of pairs as `(token id, bias)` pairs, sorted by token id."""
    try:
        pairs = bias.items() if isinstance(bias, Mapping) else bias
        return tuple(sorted((_token(token), value) for token, value in pairs))
    except (TypeError, ValueError) as e:
        raise InvalidParamsError(
            f"logit_bias must map token ids to numbers, got {bounds.shown(bias)}"
        ) from e


def _token(key: Any) -> Any:
    """Convert a token id given as text, as in JSON, to an `int`; return other keys unchanged."""
    return int(key) if isinstance(key, str) else key


def _schema_text(schema: Any) -> str:
    """Return the JSON text of a schema.

    The schema is JSON text, a dictionary, a bool, a pydantic model or a pydantic `TypeAdapter`.
    """
    for method in ("model_json_schema", "json_schema"):  # of a model, and of a TypeAdapter
        if callable(made := getattr(schema, method, None)):
            schema = closed(made())
    if isinstance(schema, str):
        schema = bounds.text("json_schema", schema)
    try:
        given = json.loads(schema) if isinstance(schema, str) else schema
        found = unwrapped(given)
        text = schema if isinstance(schema, str) and found is given else json.dumps(found)
    except TypeError:
        bounds.refuse("json_schema", schema, _SCHEMAS)
    except (ValueError, RecursionError) as e:
        raise InvalidParamsError(f"json_schema is no JSON: {e}") from e
    if not isinstance(found, (Mapping, bool)):
        raise InvalidParamsError(
            f"json_schema must be an object, true or false in JSON, got {text[:80]}"
        )
    bounds.readable("json_schema", found)
    return text
