"""The grammar of one sequence, and its state after the output so far.

After a token, the grammar may leave only one way to go on. The scheduler appends such forced tokens
at once and computes them in one extend step (jump-forward, arXiv 2312.07104v2 §4).
"""

from __future__ import annotations

from llguidance import LLMatcher

from sgl_mlx.runtime.constraints.reasons import reason


class Constraint:
    """State of one sequence's grammar: which tokens may come next, as an llguidance matcher says.

    The runtime asks for the allowed tokens before it samples, and passes on each sampled token.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> Constraint:
        """Return a constraint in the same state, which can be advanced on its own."""
        return Constraint(self._matcher.deep_copy())

    @property
    def complete(self) -> bool:
        """True if the output matches the grammar and cannot be continued."""
        return bool(self._matcher.is_stopped())

    @property
    def done(self) -> bool:
        """Always False: a grammar constrains the output until its end, unlike `Healing`."""
        return False

    @property
    def error(self) -> str | None:
        """Reason why no token can follow; None if there is no error.

        Some errors are found only when `allowed` is called.
        """
        return reason(self._matcher.get_error()) if self._matcher.is_error() else None

    def allowed(self) -> bytes:
        """Return a bit mask of the tokens that may come next; the lowest bit is that of token 0."""
        return bytes(self._matcher.compute_bitmask())

    def accept(self, token: int) -> None:
        """Advance the grammar by a sampled token."""
        self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Return the next tokens that leave no choice, and advance the grammar past them.

        Empty if the grammar allows several next tokens, or none.
        """
        if self.complete:
            return []
        tokens = list(self._matcher.compute_ff_tokens())
        return tokens[: self._matcher.try_consume_tokens(tokens)] if tokens else []
