"""Time to the first token of a request whose long prefix was evicted from the pool.

Ours is an engine with a disk cache, theirs one without; same weights, same process. A first request
with the prefix is pushed out of the pool by others. Then, each time: the pool is emptied (files
stay), another request decodes, and during that the prefix is prefetched or not. When it is done the
clock starts and a request with the prefix comes again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.core import Generated, Prompt, SamplingParams
from sgl_mlx.runtime.engine import Engine

_OWN = 32
_FILLER = 500


class PrefetchBench:
    """The pairs of `sgl-mlx bench prefetch`.

    Args:
        ours: with a disk cache; `slots(prefix)` slots.
        theirs: without one, as large.
        prefix: tokens of the evicted prefix.
        decoded: tokens that are decoded while it is prefetched.
    """

    def __init__(
        self, ours: Engine, theirs: Engine, prefix: int, decoded: int = 64, repeats: int = 2
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._decoded = decoded
        self._repeats = repeats
        self._random = random.Random(0)
        self._prefix = self._tokens(prefix)

    @staticmethod
    def slots(prefix: int) -> int:
        """Return the pool slots for the prefix, the questions and the answers."""
        return prefix + _FILLER

    @property
    def text(self) -> str:
        """The prefix as text."""
        return self._ours.tokenizer.decode(self._prefix, at_start=True)

    def pairs(self) -> Iterator[Pair]:
        """Measure all rows in requests per second; yield each as soon as it is done."""
        self._evict()
        tokens = f"first token after {len(self._prefix)} evicted tokens"
        yield measure_pairs(
            f"{tokens}: prefetched / computed",
            "1/s",
            5.0,
            lambda: self._round(self._ours, True),
            lambda: self._round(self._theirs, False),
            self._repeats,
        )
        yield measure_pairs(
            f"{tokens}: prefetched / restored on demand",
            "1/s",
            1.0,
            lambda: self._round(self._ours, True),
            lambda: self._round(self._ours, False),
            self._repeats,
        )

    def _evict(self) -> None:
        """Compute the prefix, then push all of it out of the pool."""
        self._seconds(self._ours, self._prefix)
        for _ in range(self.slots(len(self._prefix)) // _FILLER + 1):
            self._seconds(self._ours, self._tokens(_FILLER))

    def _round(self, engine: Engine, prefetch: bool) -> float:
        """Return 1 / seconds to the first token, after another request was decoded."""
        engine.flush_cache()
        decoding = threading.Event()
        other = engine.submit(
            _prompt(engine, self._tokens(_OWN)), _greedy(self._decoded), lambda _: decoding.set()
        )
        decoding.wait()
        if prefetch:
            engine.prefetch(_prompt(engine, self._prefix))
        other.result()
        return 1 / self._seconds(engine, self._prefix + self._tokens(_OWN))

    def _seconds(self, engine: Engine, tokens: list[int]) -> float:
        """Return the seconds from a request to its only token."""
        started = time.perf_counter()
        engine.submit(_prompt(engine, tokens), _greedy(1)).result()
        return time.perf_counter() - started

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(1000, 20000) for _ in range(count)]


def _prompt(engine: Engine, tokens: list[int]) -> Prompt:
    text = engine.tokenizer.decode(tokens, at_start=False)
    return (Generated(text, tuple(tokens)),)


def _greedy(new_tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_new_tokens=new_tokens, ignore_eos=True, token_healing=False
    )
