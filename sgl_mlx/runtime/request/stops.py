"""Stop strings and stop patterns: where they end a text, and how much of it they may still take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import regex

from sgl_mlx.core import FinishReason
from sgl_mlx.errors import InvalidParamsError

_SECONDS = 0.1
_SECONDS_PER_TOKEN = 0.002


class Stop(NamedTuple):
    """A stop in a text: its first character, the one after its last, and the stop itself."""

    start: int
    end: int
    matched: str


class Stops:
    """The stops of one sample.

    Searches run on the engine's thread, so that all of a sample's patterns together get 0.1 s of
    processor time and 2 ms for each token. One that backtracks for longer ends its request.

    Raises:
        InvalidParamsError: a pattern cannot be compiled.
    """

    def __init__(self, strings: Sequence[str], patterns: Sequence[str]) -> None:
        self._strings = strings
        self._patterns = [_compiled(pattern) for pattern in patterns]
        self._spent = 0.0
        self._tokens = 0

    def find(self, text: str, start: int, tokens: int) -> Stop | FinishReason | None:
        """Return the stop from `start` on that is complete first.

        Complete first, not begun first: so the split of the text into tokens does not matter.

        Args:
            tokens: how many the sample has.

        Returns:
            An abort if the patterns take too long; it names the slow one.
        """
        self._tokens = tokens
        found = []
        for stop in self._strings:
            at = text.find(stop, start)
            if at >= 0:
                found.append(Stop(at, at + len(stop), stop))
        for pattern in self._patterns:
            try:
                match = self._search(pattern, text, start)
            except TimeoutError:
                return _too_slow(pattern)
            if match and match.end() > match.start():
                found.append(Stop(match.start(), match.end(), match.group()))
        return min(found, key=lambda stop: (stop.end, stop.start), default=None)

    def safe_end(self, text: str, start: int) -> int:
        """Return how much of the text can be shown: up to what may be the beginning of a stop."""
        ends = [len(text)]
        for stop in self._strings:
            first = max(start, len(text) - len(stop) + 1)
            starts = (i for i in range(first, len(text)) if stop.startswith(text[i:]))
            ends.append(next(starts, len(text)))
        for pattern in self._patterns:
            try:
                match = self._search(pattern, text, start, partial=True)
            except TimeoutError:  # the next search ends the request
                return start
            ends.append(match.start() if match else len(text))
        return min(ends)

    def _search(
        self, pattern: regex.Pattern[str], text: str, start: int, partial: bool = False
    ) -> regex.Match[str] | None:
        left = _SECONDS + _SECONDS_PER_TOKEN * self._tokens - self._spent
        if left <= 0:
            raise TimeoutError
        started = time.thread_time()  # other threads' work is not the pattern's fault
        try:
            return pattern.search(text, start, partial=partial, timeout=left + _SECONDS)
        finally:
            self._spent += time.thread_time() - started


def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, MemoryError, RecursionError) as error:
        raise InvalidParamsError(f"stop_regex {pattern[:80]!r}: {error}") from error


def _too_slow(pattern: regex.Pattern[str]) -> FinishReason:
    return FinishReason(
        "abort",
        message=f"stop_regex {pattern.pattern[:80]!r} takes too long to search for, as patterns do "
        "that can match one text in many ways; write it without nested repeats",
    )
