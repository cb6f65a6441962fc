"""Open epoch of decode steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.sequence import Sequence


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


def has_slots(cache: PrefixCache, rows: Iterable[Sequence], width: int) -> bool:
    """Return True if the cache can give the slots for `width` decode steps over `rows`."""
    wanted = window_wanted = 0
    for s in rows:
        assert s.holding is not None
        end = s.computed + min(width, s.remaining)
        wanted += max(end - len(s.table), 0)
        window_wanted += max(end - s.holding.behind - len(s.holding.window), 0)
    fits = cache.windows is None or window_wanted <= cache.windows.available
    return fits and wanted <= cache.available
