"""`Limits`: all bounds on what a request may ask for, and the error that names them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sgl_mlx import bounds, names


@dataclass(frozen=True, repr=False)
class Limits:
    """Bounds on requests, for an engine and for the server before it.

    A request over a bound gets an error that names the bound, its value and how to raise it. Other
    requests are not affected. `docs/limits.md` lists all bounds, also those that are options of the
    engine.

    Args:
        max_body_bytes: bytes of a request's body.
        max_header_bytes: bytes of a request's target and headers.
        max_connections: HTTP requests that are open at once.
        max_requests: prompts running and waiting at once; a request that comes alone is taken
            however many prompts it has.
        max_prompts: prompts in one HTTP request, and forks of a context.
        max_n: samples of one prompt.
        max_samples: samples of all prompts in one HTTP request.
        max_prompt_chars: characters, or token ids, of a prompt.
        max_parts: parts of a prompt, such as texts and pictures.
        max_images: pictures and videos in a prompt.
        max_image_bytes: bytes of a picture or video as a file.
        max_image_pixels: pixels of a picture or of a video's frame; 64 million take 192 MB.
        max_frames: frames that are read of a video.
        max_stops: stop strings, stop tokens and stop patterns of a request, together.
        max_stop_chars: characters of a stop string.
        max_regex_chars: characters of `regex` and of a pattern in `stop_regex`.
        max_grammar_chars: characters of `grammar`, `ebnf` or `json_schema`, also after EBNF is
            translated.
        max_grammar_rules: rules of a grammar, or different references of a JSON schema.
        max_schema_depth: levels of objects and lists in a JSON schema.
        max_grammar_work: steps of work to build the expressions of a grammar.
        max_grammar_symbols: symbols in the rules of a compiled grammar; the properties of a schema
            take about six each.
        max_grammar_states: states of a grammar's automaton, of 1 to 2 kB each.
        max_step_work: steps of the lexer to find the allowed next tokens; 14,000 take about 1 ms.
        max_step_items: items of the parser to find the allowed next tokens.
        max_grammars: compiled grammars that are kept for later requests.
        max_logprobs: most likely tokens that are reported at each position.
        max_logit_bias: tokens with a bias.
        max_choices: texts of a `select`, `score` or `choice`.
        max_questions: questions of a request to `/v1/decisions`.
        max_options: options of a question.
        max_tools: tools of a request.
        max_messages: messages of a chat.
        max_contexts: contexts that `/v1/contexts` keeps; the least recently used are dropped.
        max_template_source: characters of a chat template.
        max_template_chars: characters of all texts that a chat template makes, intermediate ones
            included.
        template_seconds: seconds of processor time that a chat template may take.
        max_answer_tokens: tokens of earlier answers that the server keeps for later turns.
        max_disk_queue_bytes: bytes that wait to be written to the disk cache; more are dropped.
        request_timeout: seconds after which a request is aborted; None for no limit.
        comment_seconds: seconds without data after which a stream sends a comment, so that the
            client does not close the connection.
        stall_seconds: seconds without an answer from the engine after which `/health` gives 503.
    """

    max_body_bytes: int = 64_000_000
    max_header_bytes: int = 65_536
    max_connections: int = 2048
    max_requests: int = 512
    max_prompts: int = 1024
    max_n: int = 1024
    max_samples: int = 4096
    max_prompt_chars: int = 16_000_000
    max_parts: int = 10_000
    max_images: int = 256
    max_image_bytes: int = 64_000_000
    max_image_pixels: int = 64_000_000
    max_frames: int = 1024
    max_stops: int = 256
    max_stop_chars: int = 1000
    max_regex_chars: int = 10_000
    max_grammar_chars: int = 1_000_000
    max_grammar_rules: int = 2000
    max_schema_depth: int = 100
    max_grammar_work: int = 300_000
    max_grammar_symbols: int = 20_000
    max_grammar_states: int = 100_000
    max_step_work: int = 200_000
    max_step_items: int = 5000
    max_grammars: int = 256
    max_logprobs: int = 128
    max_logit_bias: int = 10_000
    max_choices: int = 1024
    max_questions: int = 400
    max_options: int = 255
    max_tools: int = 1024
    max_messages: int = 10_000
    max_contexts: int = 10_000
    max_template_source: int = 200_000
    max_template_chars: int = 64_000_000
    template_seconds: float = 5.0
    max_answer_tokens: int = 2_000_000
    max_disk_queue_bytes: int = 512 << 20
    request_timeout: float | None = None
    comment_seconds: float = 5.0
    stall_seconds: float = 60.0

    def __repr__(self) -> str:
        """Return the limits that differ from their defaults."""
        values = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        changed = (f"{name}={value!r}" for name, value, default in values if value != default)
        return f"Limits({', '.join(changed)})"

    @classmethod
    def of(cls, values: Limits | Mapping[str, Any] | None) -> Limits:
        """Return limits from a mapping of names to values; None gives the defaults.

        Raises:
            InvalidParamsError: `values` is neither, or has an unknown name or a wrong value.
        """
        if values is None:
            return cls()
        if isinstance(values, Limits):
            given = {name: getattr(values, name) for name in _RULES}
        elif isinstance(values, Mapping) and all(isinstance(name, str) for name in values):
            given = dict(values)
        else:
            bounds.refuse("limits", values, "Limits, or a dictionary of their names and values")
        names.only("limit of `limits`", given, _RULES)
        return replace(cls(), **{name: _RULES[name](name, value) for name, value in given.items()})

    def check(self, name: str, found: float, what: str) -> None:
        """Raise `LimitError` if `found` is over the limit `name`; see `bounds.within`."""
        bounds.within(self, name, found, what)

    def told(self, name: str) -> str:
        """Return the words of an error for the limit `name`: its value, and how to raise it."""
        return bounds.limit_told(name, getattr(self, name))


def _rules() -> dict[str, bounds.Rule]:
    count = bounds.integer(1, bounds.INT64)
    made = {f.name: count if f.type == "int" else bounds.seconds for f in fields(Limits)}
    return {**made, "request_timeout": bounds.optional(bounds.seconds)}


_RULES = _rules()
DEFAULT_LIMITS = Limits()
UNLIMITED = replace(
    Limits(),
    **{field.name: math.inf for field in fields(Limits)},  # type: ignore[arg-type]
)
"""No limits, for checks of values that an engine will check again with its own limits."""
