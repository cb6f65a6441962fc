"""Time to the first token of a request whose long prefix was evicted from the pool.

Ours is an engine with a disk cache, theirs one without; same weights, same process. On both sides
a request with the prefix comes first, another one pushes it out, and a third decodes: during that,
the prefix is prefetched or not. Then the clock starts and a request with the prefix comes again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

from sgl_mlx.benchmarks.pairs import Pair, measure_pairs
from sgl_mlx.core import Generated, Prompt, SamplingParams
from sgl_mlx.runtime.engine import Engine

_OWN = 32
_GAP = 600


class PrefetchBench:
    """The pairs of `sgl-mlx bench prefetch`.

    Args:
        ours: with a disk cache; `slots(prefix)` slots.
        theirs: without one, as large.
        prefix: tokens of the evicted prefix.
        decoded: tokens that are decoded while it is prefetched.
    """

    def __init__(
        self, ours: Engine, theirs: Engine, prefix: int, decoded: int = 48, repeats: int = 2
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._decoded = decoded
        self._repeats = repeats
        self._random = random.Random(0)
        self._prefix = self._tokens(prefix)

    @staticmethod
    def slots(prefix: int) -> int:
        """So many that the prefix fits, and that a request of `_GAP` tokens pushes it out."""
        return prefix + _GAP - _OWN

    def pairs(self) -> Iterator[Pair]:
        """Row after row, as each is done; seconds turned over, so that larger is better."""
        count = len(self._prefix)
        for engine in (self._ours, self._theirs):
            self._generate(engine, self._prefix, 1)
        yield self._pair(f"first token after {count} evicted, prefetched", 5.0, True)
        yield self._pair(f"first token after {count} evicted, restored", 2.0, False)

    def _pair(self, name: str, bar: float, prefetch: bool) -> Pair:
        def ours() -> float:
            return 1 / self._round(self._ours, prefetch)

        def theirs() -> float:
            return 1 / self._round(self._theirs, False)

        return measure_pairs(name, "1/s", bar, ours, theirs, self._repeats)

    def _round(self, engine: Engine, prefetch: bool) -> float:
        """Seconds to the first token, once the prefix has gone and another request was decoded."""
        self._generate(engine, self._tokens(_GAP), 1)
        decoding = threading.Event()
        other = engine.submit(
            _prompt(engine, self._tokens(_OWN)), _greedy(self._decoded), lambda _: decoding.set()
        )
        decoding.wait()
        if prefetch:
            engine.prefetch(_prompt(engine, self._prefix))
        other.result()
        return self._generate(engine, self._prefix + self._tokens(_OWN), 1)

    def _generate(self, engine: Engine, tokens: list[int], new_tokens: int) -> float:
        """Seconds for one request."""
        started = time.perf_counter()
        engine.submit(_prompt(engine, tokens), _greedy(new_tokens)).result()
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
