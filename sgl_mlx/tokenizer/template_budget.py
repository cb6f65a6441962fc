"""The budget of one rendering of a chat template: processor time, and characters that it makes.

A template is a program by the model's author that reads what a client sent. It may loop for ever,
or double a text forty times. So the sandbox asks the budget before each step that may take long or
make much, and every step is charged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sgl_mlx.limits import Limits

_CHECKS = 256
"""Steps between two looks at the clock."""

_WIDTH = 100_000
"""Largest number that may be a width or a count of items."""

_WIDTHS = frozenset(
    {
        *("center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "format", "format_map"),
        *("indent", "batch", "slice", "truncate", "round", "tojson"),
    }
)
"""Methods and filters whose whole numbers are widths or counts."""

_NUMBER = re.compile(r"\d{6,}")
_POWER_BITS = 20_000


class Budget:
    """The time and characters that are left; methods raise `LimitError` when none are.

    Args:
        text: number of characters of the template, as many as one round of a loop may write.
    """

    def __init__(self, limits: Limits, text: int) -> None:
        self.text = text
        self._limits = limits
        self._left: float = limits.max_template_chars
        self._end = time.thread_time() + limits.template_seconds
        self._steps = 0
        self._look = _CHECKS
        self._sizes: dict[int, tuple[object, int]] = {}  # with the objects: an id is theirs alone

    # -- charges ------------------------------------------------------------------------------

    def charge(self, characters: float = 0, steps: int = 1) -> None:
        """Charge for characters that were made, and for steps of about a microsecond."""
        self._left -= characters
        self.room(0)
        self._steps += steps
        if self._steps >= self._look:
            self._look = self._steps + _CHECKS
            if time.thread_time() > self._end:
                self._refuse("template_seconds", "the chat template takes too long")

    def room(self, characters: float) -> None:
        """Check that there is room for characters, before they are made."""
        if characters > self._left:
            self._refuse("max_template_chars", "the chat template makes too much text")

    def made(self, value: Any) -> Any:
        """Charge for a value that was just made, without the values in it, and return it."""
        if isinstance(value, (str, bytes)):
            self.charge(len(value))
        elif isinstance(value, (list, tuple, set, Mapping)):
            self.charge(8 * len(value))
        elif isinstance(value, Iterator):
            return self.each(value)
        return value

    def each(self, values: Iterable[Any], weight: int = 0) -> Iterator[Any]:
        """Yield values, and charge for each of them.

        Args:
            weight: characters that are made for each value.
        """
        for value in values:
            self.charge(weight)
            yield value

    # -- sizes --------------------------------------------------------------------------------

    def size(self, value: Any) -> int:
        """Return about how many characters a value has as text.

        A list that holds the same text a thousand times counts it a thousand times, but each list
        is looked through only once.
        """
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, int):
            return value.bit_length() // 3 + 1
        if isinstance(value, range):
            return 8 * len(value)
        if not isinstance(value, (list, tuple, set, frozenset, Mapping)):
            return 8
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        self._sizes[id(value)] = value, 0  # for a list that holds itself
        self.charge(steps=len(value))
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        total = 2 + sum(self.size(part) + 4 for part in parts)
        self._sizes[id(value)] = value, total
        return total

    # -- operations ---------------------------------------------------------------------------

    def operation(self, sign: str, left: Any, right: Any) -> None:
        """Check that there is room for the result of `left sign right`."""
        if sign == "*":
            self._times(left, right)
        elif sign == "**" and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right)
            self.room(bits if bits <= _POWER_BITS else float("inf"))
        elif sign == "%" and isinstance(left, (str, bytes)):
            self._formatted(str(left), right, "%")
        else:
            self.room(self.size(left) + self.size(right))

    def call(self, name: str, receiver: Any, given: list[Any]) -> None:
        """Check that there is room for the result of a method or a filter, and charge for the work.

        Args:
            receiver: the value that it is called on.
            given: all arguments.
        """
        if name in _WIDTHS:
            self._widths(given)
        size = self.size(receiver)
        total: float = size + sum(map(self.size, given))
        if name in ("format", "format_map") and isinstance(receiver, str):
            self._formatted(receiver, given, "{")
        elif name == "replace" and len(given) > 1:
            total += str(receiver).count(str(given[0])) * self.size(given[1])
        elif name == "translate":
            total += size * total
        elif name == "join":
            total *= 1 + max(self.size(x) if isinstance(x, str) else 0 for x in [receiver, *given])
        elif name in ("indent", "expandtabs", "tojson"):
            widths = [x if isinstance(x, int) else self.size(x) for x in given if x is not None]
            total *= 1 + max(widths, default=8) if name != "tojson" or widths else 6
        elif name == "sum" and not all(isinstance(x, (int, float, str)) for x in given[1:]):
            self.room(float("inf"))
        self.room(total)
        self.charge(steps=1 + int(total / _CHECKS))

    def _times(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self.room(left.bit_length() + right.bit_length())
        elif isinstance(right, int):
            self.room(self.size(left) * max(right, 0))
        elif isinstance(left, int):
            self.room(self.size(right) * max(left, 0))

    def _formatted(self, pattern: str, values: Any, mark: str) -> None:
        """Check that there is room for a format filled in; `mark` begins the places in it."""
        self._widths([int(digits[:20]) for digits in _NUMBER.findall(pattern)])
        if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):  # widths among the values
            self._widths(values if isinstance(values, (list, tuple)) else [values])
        self.room(len(pattern) + _WIDTH + pattern.count(mark) * self.size(values))

    def _widths(self, numbers: Iterable[Any]) -> None:
        for number in numbers:
            if isinstance(number, int) and number > _WIDTH:
                self._refuse("max_template_chars", f"the chat template asks for {number:,} places")

    def _refuse(self, limit: str, what: str) -> None:
        self._limits.check(limit, float("inf"), what)
