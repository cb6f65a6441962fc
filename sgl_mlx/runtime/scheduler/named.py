"""Look-up of the constraints and pictures that plans name by id, in the running sequences."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Rows

from sgl_mlx.runtime.scheduler.plan import Place, Shown
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.speculator import Speculator


class Named:
    """A `plan.Lookup` over the running sequences.

    Args:
        running: the scheduler's own list of running sequences, which changes over time.
        speculator: has the masks after drafted tokens; None without speculation.
    """

    def __init__(self, running: Rows[Sequence], speculator: Speculator | None = None) -> None:
        self._running = running
        self._speculator = speculator

    def masks(self, places: Collection[Place]) -> dict[Place, bytes]:
        """Return for each place which tokens its constraint allows; see `plan.Lookup.masks`."""
        running = {s.id: s for s in self._running}
        found: dict[Place, bytes] = {}
        for name, at in places:
            s = running.get(name)
            if s is None or s.constraint is None:
                continue
            drafted = self._speculator.masks(s) if self._speculator is not None else []
            mask = drafted[at] if at < len(drafted) else s.constraint.allowed()
            if mask is not None:
                found[name, at] = mask
        return found

    def image(self, picture: str) -> Shown:
        """Return the picture with this name from a running sequence; see `plan.Lookup.image`."""
        return next(p.image for s in self._running for p in s.pictures if p.name == picture)
