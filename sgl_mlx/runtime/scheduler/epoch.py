"""Open epoch of decode steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Epoch:
    """An open epoch: up to `width` decode steps over the same rows (see `plan.Decode`).

    Attributes:
        starts: by sequence id, `Sequence.computed` and `Holding.ready` when the epoch opened; a
            failed step resets the sequence to these values.
        width: most steps of the epoch.
        steps: number of steps whose results are committed.
        in_flight: True if the runner may have submitted the next step already.
    """

    starts: dict[str, tuple[int, bool]]
    width: int
    steps: int = 0
    in_flight: bool = False
