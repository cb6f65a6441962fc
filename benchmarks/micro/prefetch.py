"""Time to the first token of a request whose long prefix was evicted from the pool.

"Ours" is an engine with a disk cache, "theirs" an engine without a disk cache. Both have the same
weights and run in this process.

First a request with the prefix runs, and other requests evict the prefix to disk. Then, in each
measurement, the pool is emptied (files stay), another request decodes, and meanwhile the prefix is
prefetched or not. After the decoding, a request with the prefix is sent, and its time is measured.
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
    """The measurements of `sgl-mlx bench prefetch`.

    Args:
        ours: an engine with a disk cache and a pool of `slots(prefix)` slots.
        theirs: an engine without a disk cache, with an equal pool.
        prefix: number of tokens of the evicted prefix.
        decoded: number of tokens that another request decodes during the prefetch.
        repeats: number of measured pairs for each row of the table.
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
        """Return the number of pool slots for the prefix, other prompts and outputs."""
        return prefix + _FILLER

    @property
    def text(self) -> str:
        """The evicted prefix, as text."""
        return self._ours.tokenizer.decode(self._prefix, at_start=True)

    def pairs(self) -> Iterator[Pair]:
        """Measure each row of the table in requests per second; yield it when it is measured."""
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
        """Compute the prefix with our engine, then evict it from the pool by other prompts."""
        self._seconds(self._ours, self._prefix)
        for _ in range(self.slots(len(self._prefix)) // _FILLER + 1):
            self._seconds(self._ours, self._tokens(_FILLER))

    def _round(self, engine: Engine, prefetch: bool) -> float:
        """Measure once; returns 1 / seconds to the first token of a request with the prefix."""
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
        """Return the seconds that a request for one token takes."""
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
