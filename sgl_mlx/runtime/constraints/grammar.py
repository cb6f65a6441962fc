"""Constrained decoding: which tokens a regex, JSON schema or grammar allows next, by llguidance.

A `Constraint` belongs to one sequence. After each token it may force further ones (the text that
the grammar leaves no choice about); the scheduler appends those at once and computes them in one
extend (jump-forward, arXiv 2312.07104v2 §4).
"""

from __future__ import annotations

import re
import threading
import unicodedata
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.tokenizer import Tokenizer

DTYPES = {
    "int": r"[-+]?[0-9]+[ \n]*",
    "float": r"[-+]?[0-9]*\.?[0-9]+[ \n]*",
    "bool": r"(True|False)",
    "str": r'"[\w\d\s]*"',
}
"""SGLang's regular expressions for `dtype`."""

_JSON_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""As `json.dumps` writes; free white space lets a small model pad for ever."""

_UNICODE = min("16.0", unicodedata.unidata_version.rpartition(".")[0])
_CLASSES = {"d": r"\p{Nd}", "w": r"\p{L}\p{N}_", "s": r"\s\x1c-\x1f"}
"""What Python's `re` takes for a digit, a word character and white space, for Rust's regex."""

_CACHED_GRAMMARS = 256


class Constraint:
    """The grammar of one sequence and how far its output has come."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def done(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        """Why no token may follow at all, where the grammar came to a dead end.

        A dead end may show only when `allowed` looks for what follows.
        """
        return _reason(self._matcher) if self._matcher.is_error() else None

    def allowed(self) -> bytes:
        """The tokens that may come next, a bit each, the first in the lowest bit."""
        return bytes(self._matcher.compute_bitmask())

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Take, and return, the tokens that must come next."""
        if self.complete:
            return []
        tokens = list(self._matcher.compute_ff_tokens())
        return tokens[: self._matcher.try_consume_tokens(tokens)] if tokens else []


class GrammarCompiler:
    """Makes constraints for one tokenizer; compiled grammars are kept. Safe to share by threads.

    Args:
        vocabulary: the model's number of logits, at least the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._ll_tokenizer: LLTokenizer | None = None
        self._compiled = lru_cache(_CACHED_GRAMMARS)(self._compile)

    def constraint(self, params: SamplingParams) -> Constraint | None:
        """A fresh constraint for a request that has one.

        Raises:
            InvalidParamsError: for several at once, an unknown dtype, or a grammar that is
                malformed, unsupported or matches nothing, with llguidance's reason.
        """
        asked = [name for name in _KINDS if getattr(params, name) is not None]
        if not asked:
            return None
        if len(asked) > 1:
            raise InvalidParamsError(f"{' and '.join(asked)} exclude each other; give one")
        with self._lock:
            matcher = self._compiled(asked[0], getattr(params, asked[0]))
        return Constraint(matcher.deep_copy())

    def prepare(self) -> None:
        """Build llguidance's vocabulary now; it holds the GIL for 0.2 s for 49,000 tokens.

        The other work of a compilation happens without the GIL.
        """
        with self._lock:
            if self._tokenizer.eos_token_ids:
                self._prepare()

    def _prepare(self) -> LLTokenizer:
        if self._ll_tokenizer is None:
            self._ll_tokenizer = LLTokenizer(
                self._tokenizer.backend.to_str(),
                n_vocab=self._vocabulary,
                eos_token=sorted(self._tokenizer.eos_token_ids),
            )
        return self._ll_tokenizer

    def _compile(self, kind: str, text: str) -> LLMatcher:
        grammar = _grammar(kind, text)
        if not self._tokenizer.eos_token_ids:
            raise InvalidParamsError(f"{kind} needs a model with an end token; this one has none")
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._prepare(), grammar, log_level=0, limits=limits)
        probe = Constraint(matcher.deep_copy())
        probe.forced()
        probe.allowed()
        if probe.error is not None:
            raise InvalidParamsError(f"{kind} {_short(text)}: {probe.error}")
        return matcher


def _grammar(kind: str, text: str) -> str:
    if kind == "dtype":
        if text not in DTYPES:
            raise InvalidParamsError(f"unknown dtype {text!r}; known are {', '.join(DTYPES)}")
        return str(LLMatcher.grammar_from_regex(DTYPES[text]))
    if kind == "json_schema":
        try:
            return str(LLMatcher.grammar_from_json_schema(text, overrides=_JSON_STYLE))
        except ValueError as e:
            raise InvalidParamsError(f"json_schema {_short(text)}: {e}") from e
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(_as_python_reads(text)))
    return str(LLMatcher.grammar_from_lark(_without_endless_forcing(text)))


def _without_endless_forcing(grammar: str) -> str:
    """Give up forced tokens where a terminal may be of any length.

    Terminals are greedy, so `A A` with `A: /a+/` never comes to its second half; what it forces
    is endless, and llguidance would follow it for ever.
    """
    if re.search(r"[*+~%]|,\s*}", grammar) is None:
        return grammar
    return f'{grammar}\n%llguidance {{"no_forcing": true}}\n'


def _as_python_reads(pattern: str) -> str:
    return re.sub(r"\\.", lambda escape: _python_class(escape[0]), pattern, flags=re.S)


def _python_class(escape: str) -> str:
    """The same characters as in this Python, whose Unicode may be older than Rust's."""
    letter = escape[1]
    if letter.lower() not in _CLASSES:
        return escape
    known = rf"[{_CLASSES[letter.lower()]}]&&\p{{Age={_UNICODE}}}"
    return f"[{known}]" if letter.islower() else f"[^{known}]"


def _reason(matcher: LLMatcher) -> str:
    error = matcher.get_error().removesuffix("<non-verbose/>").strip()
    return "nothing can match it" if error == "NoExtensionBias" else error


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


_KINDS = ("regex", "json_schema", "dtype", "grammar")
