"""Index of token runs, which finds where the last tokens of a text occurred earlier.

It keeps hash chains as LZ77 compressors do (RFC 1951, section 4): a table maps each run of
`SHORTEST` tokens to the index where the run ended last, and a second table maps this index to the
run's previous end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SHORTEST = 3
"""Fewest equal tokens that count as a match."""

_CHAIN = 8
"""Most earlier places of a run that are compared, from the latest on."""
_LONGEST = 32
"""Most tokens before a place that are compared."""


class Found(NamedTuple):
    """A match: the index of the token after the equal tokens (`end`), and how many (`length`)."""

    end: int
    length: int


class RunIndex:
    """Index over a list of tokens, to which its owner appends.

    Args:
        tokens: the list; it is not copied.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._last: dict[tuple[int, ...], int] = {}
        self._before: list[int] = [0] * SHORTEST  # by end of a run; 0 for none

    def update(self, most: int) -> None:
        """Index tokens that were added to the list, at most `most` of them."""
        first = len(self._before)
        for end in range(first, min(first + most, len(self.tokens))):
            run = tuple(self.tokens[end - SHORTEST : end])
            self._before.append(self._last.get(run, 0))
            self._last[run] = end

    def find(self, tokens: list[int]) -> Found | None:
        """Find where the list has the longest match with the end of `tokens`; None without a match.

        Only the latest `_CHAIN` places with the same last tokens are compared; the latest of
        equally long matches wins. A match is always followed by a token of the list.
        """
        best: Found | None = None
        for end in self._places(tuple(tokens[-SHORTEST:])):
            length = self._agreement(tokens, end)
            if best is None or length > best.length:
                best = Found(end, length)
        return best

    def _places(self, run: tuple[int, ...]) -> Iterator[int]:
        end = self._last.get(run, 0)
        for _ in range(_CHAIN):
            if not end:
                return
            yield end
            end = self._before[end]

    def _agreement(self, tokens: list[int], end: int) -> int:
        """Count equal tokens backwards from the end of `tokens` and from `end` in `self.tokens`."""
        most = min(_LONGEST, end, len(tokens))
        length = SHORTEST
        while length < most and self.tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
