"""Open epoch of decode steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Epoch:
    """An open epoch of decode steps.

    `starts` has, by sequence id, how many tokens were computed when the epoch opened, and whether
    the sequence had a recurrent state of its own. `steps` of at most `width` steps are committed.
    `in_flight` is True if the runner may have submitted the next step already.
    """

    starts: dict[str, tuple[int, bool]]
    width: int
    steps: int = 0
    in_flight: bool = False
