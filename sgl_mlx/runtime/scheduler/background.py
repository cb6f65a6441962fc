"""Prefetches: prompts whose KV is cached before a request needs it (`Engine.prefetch`).

Blocks in the disk cache are restored at once. All other tokens are computed only while no request
needs the model. When a request comes, running prefetches are preempted and keep the KV computed so
far, so a request is delayed by one prefill chunk at most.
"""

from __future__ import annotations

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.cache.restores import Restores
from sgl_mlx.runtime.cache.tier import BLOCK
from sgl_mlx.runtime.scheduler.admission import Admission
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL, Queues
from sgl_mlx.runtime.scheduler.sequence import Sequence


class Background:
    """The part of the scheduler that runs prefetches, which wait in `Queues.background`."""

    def __init__(self, queues: Queues, restores: Restores | None, admission: Admission) -> None:
        self._queues = queues
        self._restores = restores
        self._admission = admission

    def advance(self) -> None:
        """Preempt running prefetches if requests wait, and go on with the waiting prefetches.

        Restores from disk are begun or finished. Prefetches whose prompt is now cached are ended.
        """
        if self._queues.waiting:
            for s in [s for s in self._queues.running if s.background]:
                self._queues.retract(s)
        for s in list(self._queues.background):
            if self._restored(s) and self._resident(s):
                self._queues.end(s, FinishReason("length", length=0))

    def start(self) -> bool:
        """Admit the first prefetch that has no blocks left to read from disk.

        A prefetch that is too large for the pool is aborted instead. Call this method only when no
        request and no other prefetch can run.

        Returns:
            True if a prefetch was admitted or aborted; False if all still wait for blocks from
            disk.
        """
        ready = [s for s in self._queues.background if self._restored(s)]
        if not ready:
            return False
        if not self._admission.start(ready[0], self._queues.background, self._queues.running):
            self._queues.abort(ready[0], TOO_SMALL)
        return True

    def _restored(self, s: Sequence) -> bool:
        """Go on with reading a prompt's blocks from disk; return True if no block is left."""
        if self._restores is None:
            return True
        if s.restore is None:
            s.restore = self._restores.begin(s.key, s.namespace)
        if s.restore is None or not s.restore.done:
            return False
        self._restores.finish(s.restore)
        return True

    def _resident(self, s: Sequence) -> bool:
        """Return True if all of a prompt is cached, or all but an end shorter than a block.

        The disk cache keeps whole blocks only, so a restored prompt lacks such an end. At least one
        block must be cached for this exception.
        """
        cached, _ = self._queues.cache.reusable(s.key, s.namespace, s.match_limit)
        missing = len(s.tokens) - cached
        return missing == 0 or missing < BLOCK <= cached
