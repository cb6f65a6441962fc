"""Grammars made ready for the engine: Lark as it is written, EBNF and GBNF translated."""

from __future__ import annotations

import re

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.constraints.ebnf import is_ebnf, to_lark
from sgl_mlx.tokenizer import Tokenizer

_QUOTED_OR_NAME = re.compile(
    r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*|<[^<>"/\s\[][^<>"\s]*>|<[/|][^<>"\s]*>'
)


def prepare_grammar(grammar: str, tokenizer: Tokenizer) -> str:
    """Write a grammar in the engine's Lark.

    `<name>` stands for an added token, whether the tokenizer calls it special or not.

    Raises:
        InvalidParamsError: for an empty grammar, or EBNF that cannot be translated.
    """
    if not grammar.strip():
        raise InvalidParamsError("grammar is empty; it needs a rule named start (Lark) or root")
    if is_ebnf(grammar):
        return _without_endless_forcing(to_lark(grammar))
    return _without_endless_forcing(_with_plain_tokens(grammar, tokenizer))


def _with_plain_tokens(grammar: str, tokenizer: Tokenizer) -> str:
    """Name added tokens that are no special ones by their ids, as the engine wants them."""

    def by_id(found: re.Match[str]) -> str:
        token = tokenizer.added_token(found[0]) if found[0][0] == "<" else None
        return found[0] if token is None or tokenizer.is_special(token) else f"<[{token}]>"

    return _QUOTED_OR_NAME.sub(by_id, grammar)


def _without_endless_forcing(grammar: str) -> str:
    """Give up forced tokens where a terminal may be of any length.

    Terminals are greedy, so `A A` with `A: /a+/` never comes to its second half; what it forces
    is endless, and llguidance would follow it for ever.
    """
    if re.search(r"[*+~%]|,\s*}", grammar) is None:
        return grammar
    return f'{grammar}\n%llguidance {{"no_forcing": true}}\n'
