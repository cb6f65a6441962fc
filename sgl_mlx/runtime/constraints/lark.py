"""Preparation of grammars for llguidance: Lark is adapted, EBNF and GBNF are translated to Lark."""

from __future__ import annotations

import re

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.constraints.ebnf import is_ebnf, to_lark
from sgl_mlx.tokenizer import Tokenizer

NO_FORCING = '%llguidance {"no_forcing": true}'
"""The line that switches off forced tokens."""

_RULE = re.compile(r"^[ \t]*[?!]*\w[^:\n]*:", re.MULTILINE)
_QUOTED_OR_NAME = re.compile(
    r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*|<[^<>"/\s\[][^<>"\s]*>|<[/|][^<>"\s]*>'
)


def prepare_grammar(grammar: str, tokenizer: Tokenizer, limits: Limits) -> str:
    """Convert a Lark, EBNF or GBNF grammar to the Lark dialect of llguidance.

    In Lark, `<name>` stands for an added token, whether it is special or not.

    Raises:
        InvalidParamsError: the grammar is empty, names an end token or a token that the model does
            not have, or is EBNF that cannot be translated.
        LimitError: the grammar has too many rules.
    """
    if not grammar.strip():
        raise InvalidParamsError("grammar is empty; it needs a rule named start (Lark) or root")
    if is_ebnf(grammar):
        return _without_endless_forcing(to_lark(grammar, limits))
    rules = len(_RULE.findall(grammar))
    limits.check("max_grammar_rules", rules, f"the grammar has {rules:,} rules")
    return _without_endless_forcing(_with_plain_tokens(grammar, tokenizer))


def _with_plain_tokens(grammar: str, tokenizer: Tokenizer) -> str:
    """Replace `<name>` by `<[id]>` for added tokens that are not special, as llguidance expects."""

    def by_id(found: re.Match[str]) -> str:
        if found[0][0] != "<":
            return found[0]
        token = tokenizer.added_token(found[0])
        if token is None:
            raise InvalidParamsError(
                f"the grammar names {found[0]}, which is no added token of this model; write its "
                f'text, "{found[0]}", or a rule\'s name without brackets'
            )
        if token in tokenizer.eos_token_ids:
            raise InvalidParamsError(
                f"the grammar names {found[0]}, which ends an answer of this model; leave it out, "
                f'since an answer ends where its grammar does, or write its text, "{found[0]}"'
            )
        return found[0] if tokenizer.is_special(token) else f"<[{token}]>"

    return _QUOTED_OR_NAME.sub(by_id, grammar)


def _without_endless_forcing(grammar: str) -> str:
    """Switch off forced tokens (without an alternative) in a grammar with unlimited repetition.

    Terminals are greedy: `A A` with `A: /a+/` never reaches the second `A`. Such a grammar forces
    an endless text, and llguidance would never finish computing the forced tokens.
    """
    if re.search(r"[*+~%]|,\s*}", grammar) is None:
        return grammar
    return f"{grammar}\n{NO_FORCING}\n"
