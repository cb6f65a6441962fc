"""Prefetches: prompts that are to be resident before anybody asks for them (`Engine.prefetch`).

What the second tier has of them is restored at once. The rest is computed while there is no other
request, and given up, keeping what is done, as soon as one comes: so a request is delayed by one
prefill chunk at most.
"""

from __future__ import annotations

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.cache.restores import Restores
from sgl_mlx.runtime.cache.tier import BLOCK
from sgl_mlx.runtime.scheduler.admission import Admission
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL, Queues
from sgl_mlx.runtime.scheduler.sequence import Sequence


class Background:
    """The prefetches of `queues.background`; see the module."""

    def __init__(self, queues: Queues, restores: Restores | None, admission: Admission) -> None:
        self._queues = queues
        self._restores = restores
        self._admission = admission

    def advance(self) -> None:
        """Preempt prefetches for requests, go on restoring, and end what is resident."""
        if self._queues.waiting:
            for s in [s for s in self._queues.running if s.background]:
                self._queues.retract(s)
        for s in list(self._queues.background):
            if self._restored(s) and self._resident(s):
                self._queues.end(s, FinishReason("length", length=0))

    def start(self) -> bool:
        """Admit one prefetch, as nothing else is left to do; False if all wait for blocks."""
        ready = [s for s in self._queues.background if self._restored(s)]
        if not ready:
            return False
        if not self._admission.start(ready[0], self._queues.background, self._queues.running):
            self._queues.abort(ready[0], TOO_SMALL)
        return True

    def _restored(self, s: Sequence) -> bool:
        """True when all that the second tier has of it was given to the tree."""
        if self._restores is None:
            return True
        if s.restore is None:
            s.restore = self._restores.begin(s.key, s.namespace)
        if s.restore is None or not s.restore.done:
            return False
        self._restores.finish(s.restore)
        return True

    def _resident(self, s: Sequence) -> bool:
        """True if the tree has all but an end that fills no block, which the request computes."""
        cached, _ = self._queues.cache.tree.match_length(s.key, s.namespace)
        missing = len(s.tokens) - cached
        return missing == 0 or missing < BLOCK <= cached
