"""Stop strings and patterns: where a text has a stop, and which last characters may begin one."""

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
    """A stop found in a text: characters `start … end - 1`, and the text that matched."""

    start: int
    end: int
    matched: str


class Stops:
    """The stop strings and patterns of one sample.

    Searches run on the engine thread, where a slow pattern would hold up all requests. So all
    patterns of a sample together get at most 0.1 s of processor time plus 2 ms for each token;
    when they need more, `find` returns an abort.

    Raises:
        InvalidParamsError: a pattern cannot be compiled.
    """

    def __init__(self, strings: Sequence[str], patterns: Sequence[str]) -> None:
        self._strings = strings
        self._patterns = [_compiled(pattern) for pattern in patterns]
        self._spent = 0.0
        self._tokens = 0

    def find(self, text: str, start: int, tokens: int) -> Stop | FinishReason | None:
        """Find the stop that ends first among those that begin at index `start` or later.

        The earliest end counts, not the earliest beginning, so that the split of the text into
        tokens does not matter.

        Args:
            text: all text of the sample so far.
            tokens: number of tokens that the sample has so far.

        Returns:
            The stop; None if there is none; a `FinishReason` "abort" if the patterns take too long.
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
        """Return how many characters of the text are safe to show; the rest may begin a stop.

        Args:
            text: all text of the sample so far.
            start: how many characters are shown already.
        """
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
        started = time.thread_time()  # this thread's time only, not that of other threads
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
