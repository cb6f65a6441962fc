"""The grammar of one sequence and how far its output has come.

After each token a constraint may force further ones (the text that the grammar leaves no choice
about); the scheduler appends those at once and computes them in one extend (jump-forward,
arXiv 2312.07104v2 §4).
"""

from __future__ import annotations

from llguidance import LLMatcher


class Constraint:
    """The state of one sequence's grammar, kept by llguidance: it tells what may come next."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """True when nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def done(self) -> bool:
        """Always False: a grammar holds to the end of the output."""
        return False

    @property
    def error(self) -> str | None:
        """Say why no token may follow, if none may; it may show only after `allowed`."""
        return _reason(self._matcher) if self._matcher.is_error() else None

    def allowed(self) -> bytes:
        """Return the tokens that may come next, a bit each, the first in the lowest bit."""
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


def _reason(matcher: LLMatcher) -> str:
    error = matcher.get_error().removesuffix("<non-verbose/>").strip()
    return "nothing can match it" if error == "NoExtensionBias" else error
