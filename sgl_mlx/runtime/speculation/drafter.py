"""The interface of a drafter, which guesses the next tokens of a sequence."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from sgl_mlx.runtime.scheduler.sequence import Sequence


class Proposal(NamedTuple):
    """A guess at the next tokens of a sequence.

    Attributes:
        tokens: the guessed tokens, at least one.
        source: the drafter's name; if the drafter has several degrees of certainty, also the
            degree. The share of accepted tokens is counted for each source.
        likelihood: probability that a token is accepted if all tokens before it are; assumed until
            drafts of this source were verified.
    """

    tokens: tuple[int, ...]
    source: str
    likelihood: float = 0.6


class Drafter(Protocol):
    """An object that guesses tokens. A wrong guess costs time, and never changes the output."""

    def propose(self, s: Sequence, limit: int) -> Proposal | None:
        """Guess up to `limit` tokens that follow `s.tokens`; return None without a guess."""
        ...

    def ended(self, s: Sequence) -> None:
        """Forget a sequence that has ended, or keep its output as a source of later guesses."""
        ...

    def flush(self) -> None:
        """Forget all outputs, because the cache is flushed."""
        ...
