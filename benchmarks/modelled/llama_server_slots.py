"""Simulation of llama-server's slots, to count the prompt tokens that are cached.

A slot keeps the tokens of its last call. A call takes the idle slot with the longest common prefix.
If no idle slot holds more than a tenth of the prompt, it takes the least recently used one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from sgl_mlx.benchmarks.suite.optimum import Asked

T = TypeVar("T")

SIMILAR = 0.1
"""Share of a prompt above which llama-server prefers the slot that holds it to the least recently
used slot (llama-server's `--slot-prompt-similarity`)."""


@dataclass
class Slots:
    """The slots of one llama-server; each keeps the tokens of its last call only."""

    count: int
    _held: list[tuple[int, ...]] = field(init=False)
    _used: list[int] = field(init=False)
    """Numbers of the slots, the least recently used first."""

    def __post_init__(self) -> None:
        self._held = [()] * self.count
        self._used = list(range(self.count))

    def cached(self, calls: Sequence[Asked]) -> list[int]:
        """Run simultaneous calls, each in a slot of its own, and keep their tokens in the slots.

        The module's docstring tells how slots are chosen. Returns the number of cached prompt
        tokens of each call. The last token of a prompt is always computed.
        """
        idle, found = list(self._used), []
        for call in calls:
            prompt = call.prompt
            common = {slot: _common(prompt, self._held[slot]) for slot in idle}
            slot = max(idle, key=common.__getitem__)
            if common[slot] <= SIMILAR * len(prompt):
                slot = idle[0]
            found.append(min(common[slot], len(prompt) - 1))
            self._held[slot] = prompt + call.output[:-1]
            idle.remove(slot)
            self._used.remove(slot)
            self._used.append(slot)
        return found


def rounds(programs: Sequence[Sequence[T]], concurrency: int) -> Iterator[list[T]]:
    """Yield lists of calls made at the same time: the next call of each running program.

    A program that ends is replaced by the next one; at most `concurrency` run at a time.
    """
    waiting = iter(map(iter, programs))
    running = list(islice(waiting, concurrency))
    while running:
        together: list[T] = []
        for lane, program in enumerate(running):
            call = next(program, None)
            while call is None and (another := next(waiting, None)) is not None:
                running[lane], call = another, next(another, None)
            if call is not None:
                together.append(call)
        if not together:
            return
        yield together


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return the length of the common prefix, by bisection, because slices compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
