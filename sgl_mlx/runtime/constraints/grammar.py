"""Compilation of regexes, JSON schemas and grammars to constraints, by the library llguidance."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError, TokenizerError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.constraints.constraint import Constraint
from sgl_mlx.runtime.constraints.deep_stack import on_deep_stack
from sgl_mlx.runtime.constraints.ebnf import is_ebnf
from sgl_mlx.runtime.constraints.json_text import JsonText
from sgl_mlx.runtime.constraints.lark import prepare_grammar
from sgl_mlx.runtime.constraints.python_regex import short, to_rust
from sgl_mlx.runtime.constraints.reasons import reason
from sgl_mlx.runtime.constraints.schema import prepare_schema
from sgl_mlx.runtime.constraints.vocabulary import GrammarVocabulary
from sgl_mlx.tokenizer import Tokenizer

DTYPES = {
    "int": r"[-+]?[0-9]+[ \n]*",
    "float": r"[-+]?[0-9]*\.?[0-9]+[ \n]*",
    "bool": r"(True|False)",
    "str": r'"[\w\d\s]*"',
}
"""SGLang's regular expression for each `dtype`."""

DEFAULT = Limits()

_KINDS = ("regex", "json_schema", "dtype", "grammar", "ebnf")

_JSON_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""Options of llguidance for white space as `json.dumps` writes it.

With free white space, a small model could write white space for ever.
"""


class GrammarCompiler:
    """Compiler of the regexes, schemas and grammars of requests to constraints, for one tokenizer.

    Compiled grammars are cached. Several threads may share a compiler.

    Args:
        vocabulary: the model's number of logits; it may be larger than the tokenizer's vocabulary.
        limits: bounds on a grammar's size, and on the work of compiling and applying it.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._size = vocabulary
        self._tables = threading.Lock()  # held while the vocabulary is built
        self._vocabulary: GrammarVocabulary | None = None
        self._lock = threading.Lock()  # guards `_compiled`
        self._compiled: OrderedDict[tuple[str, str], Future[LLMatcher]] = OrderedDict()

    def constraint(self, params: SamplingParams) -> Constraint | None:
        """Return a new constraint for a request; None if `params` ask for none.

        Raises:
            InvalidParamsError: `params` ask for several constraints, the dtype is unknown, or the
                grammar is not text, is malformed or not supported, or matches nothing.
            TokenizerError: the bytes of the tokens do not agree with how text is tokenized.
        """
        asked = [name for name in _KINDS if getattr(params, name) is not None]
        if not asked:
            return None
        if len(asked) > 1:
            raise InvalidParamsError(f"{' and '.join(asked)} exclude each other; give one")
        (kind,) = asked
        matcher = self._matcher(kind, _checked(kind, getattr(params, kind)))
        vocabulary = self._vocabulary
        if kind == "json_schema" and vocabulary is not None:
            return JsonText(matcher.deep_copy(), vocabulary)
        return Constraint(matcher.deep_copy())

    def has(self, params: SamplingParams) -> bool:
        """Return True if the grammar that `params` ask for is compiled already."""
        with self._lock:
            found = [self._compiled.get((kind, getattr(params, kind))) for kind in _KINDS]
        return any(future is not None and future.done() for future in found)

    def _matcher(self, kind: str, text: str) -> LLMatcher:
        """Return a compiled grammar; only one of the threads that ask for it compiles it."""
        key = kind, text
        with self._lock:
            compiled = self._compiled.get(key)
            is_first = compiled is None
            if compiled is None:
                compiled = self._compiled[key] = Future()
            self._compiled.move_to_end(key)
            while len(self._compiled) > self._limits.max_grammars:
                self._compiled.popitem(last=False)
        if is_first:
            try:
                compiled.set_result(on_deep_stack(lambda: self._compile(kind, text)))
            except BaseException as error:  # any error, or other threads would wait for ever
                compiled.set_exception(error)
                with self._lock:
                    self._compiled.pop(key, None)
        return compiled.result()

    def prepare(self) -> None:
        """Build llguidance's vocabulary before the first request needs it; building holds the GIL.

        Errors of the tokenizer are ignored here; the first request with a grammar raises them.
        """
        with suppress(TokenizerError):
            self._prepared()

    def _prepared(self) -> GrammarVocabulary:
        with self._tables:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer, self._size)
            return self._vocabulary

    def _compile(self, kind: str, text: str) -> LLMatcher:
        vocabulary = self._prepared()
        grammar = _grammar(kind, text, self._tokenizer, self._limits)
        matcher = LLMatcher(vocabulary.engine, grammar, log_level=0, limits=self._parser_limits())
        probe = Constraint(matcher.deep_copy())
        forced, mask = probe.forced(), int.from_bytes(probe.allowed(), "little")
        if probe.error is not None:
            raise InvalidParamsError(f"{kind} {short(text)}: {probe.error}")
        if not forced and not mask & ((1 << self._size) - 1):
            raise InvalidParamsError(
                f"{kind} {short(text)}: only an empty text matches, and this model has no end token"
            )
        return matcher

    def _parser_limits(self) -> LLParserLimits:
        limits = self._limits
        return LLParserLimits(
            verbose_errors=False,
            initial_lexer_fuel=limits.max_grammar_work,
            step_lexer_fuel=limits.max_step_work,
            step_max_items=limits.max_step_items,
            max_lexer_states=limits.max_grammar_states,
            max_grammar_size=limits.max_grammar_symbols,
        )


def _checked(kind: str, text: Any) -> str:
    """Return `text` unchanged; raise `InvalidParamsError` unless it is a string valid in UTF-8."""
    if not isinstance(text, str):
        raise InvalidParamsError(f"{kind} must be text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InvalidParamsError(
            f"{kind} {text!a} holds half a surrogate pair at position {e.start}"
        ) from e
    return text


def _grammar(kind: str, text: str, tokenizer: Tokenizer, limits: Limits) -> str:
    if kind == "dtype":
        if text not in DTYPES:
            raise InvalidParamsError(f"unknown dtype {text!r}; known are {', '.join(DTYPES)}")
        return str(LLMatcher.grammar_from_regex(DTYPES[text]))
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(to_rust(text)))
    if kind == "ebnf" and not is_ebnf(text):
        raise InvalidParamsError(f"ebnf {short(text)}: its first rule is not defined with ::=")
    if kind in ("grammar", "ebnf"):
        return str(LLMatcher.grammar_from_lark(prepare_grammar(text, tokenizer, limits)))
    try:
        schema = prepare_schema(text, limits)
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE))
    except InvalidParamsError:
        raise
    except ValueError as e:
        raise InvalidParamsError(f"json_schema {short(text)}: {reason(str(e))}") from e
