"""Our engine against mlx-lm's generators: same weights, same thread, same process.

mlx-lm runs a separately loaded model, because on a CPU ours may use our own kernels. Both sides
take random token ids and generate a fixed number of tokens greedily. For decode, both sides prefill
the prompts before time is measured.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache

from sgl_mlx import machine
from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.models.loader import load
from sgl_mlx.runtime.engine import Engine

Prompt = list[int]

_TREE = [1, 4, 2, 4], [512, 256, 256, 16]
"""A tree of prompts with 32 leaves: branches per level, and tokens per node of each level.

The levels are shared examples, 4 questions, 2 branches of each, and 4 sequences of each branch."""


class EngineBench:
    """The measurements of `sgl-mlx bench engine`.

    Args:
        engine: our engine; mlx-lm runs on this engine's thread, with the same weights.
        repeats: number of measured pairs for each row of the table.
        scale: factor for the number of generated tokens.
    """

    def __init__(self, engine: Engine, repeats: int = 3, scale: float = 1.0) -> None:
        self._engine = engine
        name, dtype = engine.config.model_path, None if machine.on_gpu() else "float32"
        self._theirs = engine.run_on_thread(lambda: load(name, dtype=dtype).model)
        self._repeats = repeats
        self._new_tokens = max(int(64 * scale), 4)
        self._random = random.Random(0)

    def pairs(self) -> Iterator[Pair]:
        """Measure each row of the table; yield it as soon as it is measured."""
        yield self._pair("prefill 512", 1.6, self._prefill_ours, self._prefill_theirs)
        yield self._decode("decode B=1", 0.95, [1], [32])
        yield self._decode("decode B=8", 1.0, [8], [64])
        yield self._decode("decode B=32, nothing shared", 1.0, [32], [64])
        yield self._decode("decode B=32, shared 256", 1.5, [1, 32], [256, 16])
        yield self._decode("decode B=32, shared 1024", 2.5, [1, 32], [1024, 16])
        yield self._decode("decode B=32, tree of depth 3", 2.5, *_TREE)
        yield self._pair("burst of 16, shared 256", 5.0, self._burst_ours, self._burst_theirs)

    def decodes(self, sizes: Sequence[int]) -> Iterator[Pair]:
        """Measure decoding of a batch of each size in `sizes`, after prompts that share nothing."""
        for rows in sizes:
            yield self._decode(f"decode B={rows}", 1.0, [rows], [32])

    def overhead(self) -> float:
        """Return the share of the engine's busy time so far that tree and scheduler took.

        Busy time is the time in the radix tree, the scheduler and the model.
        """
        stats = self._engine.get_server_info()["stats"]
        policy = stats["tree_seconds"] + stats["schedule_seconds"]
        return float(policy / (policy + stats["model_seconds"]))

    def _pair(
        self, name: str, bar: float, ours: Callable[[], float], theirs: Callable[[], float]
    ) -> Pair:
        return measure_pairs(name, "tok/s", bar, ours, theirs, self._repeats)

    def _tokens(self, count: int) -> Prompt:
        return [self._random.randrange(1000, 20000) for _ in range(count)]

    # -- prefill ------------------------------------------------------------------------------

    def _prefill_ours(self) -> float:
        return 512 / self._generate([self._tokens(512)], 1)

    def _prefill_theirs(self) -> float:
        prompt = mx.array(self._tokens(512))

        def run(model: Any) -> float:
            started = time.perf_counter()
            next(generate_step(prompt, model, max_tokens=1))
            return time.perf_counter() - started

        return 512 / self._on_engine_thread(run)

    # -- decode -------------------------------------------------------------------------------

    def _decode(
        self, name: str, bar: float, branches: Sequence[int], lengths: Sequence[int]
    ) -> Pair:
        """Measure decoding of prompts that are the leaves of a tree.

        Args:
            branches: number of branches of each node, by level.
            lengths: number of tokens of each node, by level.
        """
        rows, shared = math.prod(branches), sum(lengths[:-1])
        tokens = rows * self._new_tokens

        def prompts() -> list[Prompt]:
            found: list[Prompt] = [[]]
            for count, own in zip(branches, lengths, strict=True):
                found = [prefix + self._tokens(own) for prefix in found for _ in range(count)]
            return found

        def ours() -> float:
            batch = prompts()
            self._generate(batch, 0)
            return tokens / self._generate(batch, self._new_tokens)

        def theirs() -> float:
            batch = prompts()
            return tokens / self._on_engine_thread(
                lambda model: _mlx_lm_decode(model, batch, self._new_tokens, shared)
            )

        return self._pair(name, bar, ours, theirs)

    # -- a burst over one prefix --------------------------------------------------------------

    def _burst(self) -> list[Prompt]:
        prefix = self._tokens(256)
        return [prefix + self._tokens(16) for _ in range(16)]

    def _burst_ours(self) -> float:
        return 16 * 272 / self._generate(self._burst(), 4)

    def _burst_theirs(self) -> float:
        batch = self._burst()

        def run(model: Any) -> float:
            started = time.perf_counter()
            _mlx_lm_decode(model, batch, 4, 0)
            return time.perf_counter() - started

        return 16 * 272 / self._on_engine_thread(run)

    # -- running ------------------------------------------------------------------------------

    def _generate(self, prompts: list[Prompt], new_tokens: int) -> float:
        """Return the seconds that our engine takes for one batch."""
        params = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        started = time.perf_counter()
        self._engine.generate(input_ids=prompts, sampling_params=params)
        return time.perf_counter() - started

    def _on_engine_thread(self, run: Callable[[Any], float]) -> float:
        return self._engine.run_on_thread(lambda: run(self._theirs))


def _mlx_lm_decode(model: Any, prompts: list[Prompt], new_tokens: int, shared: int) -> float:
    """Return the seconds that mlx-lm takes to decode a batch, without prefill.

    Args:
        new_tokens: number of tokens to generate after each prompt.
        shared: number of tokens at the start of each prompt for which a cache is filled first. For
            equal prefixes, one cache is computed and copied, which shortens the benchmark.
    """
    if len(prompts) == 1:
        steps = generate_step(mx.array(prompts[0]), model, max_tokens=new_tokens + 1)
        next(steps)
        started = time.perf_counter()
        for _ in range(new_tokens):
            next(steps)
        return time.perf_counter() - started
    rows = len(prompts)  # all begin to decode together
    generator = BatchGenerator(
        model, max_tokens=new_tokens, completion_batch_size=rows, prefill_batch_size=rows
    )
    caches = _caches(model, [prompt[:shared] for prompt in prompts]) if shared else None
    generator.insert([prompt[shared:] for prompt in prompts], caches=caches)
    del caches
    with generator.stats() as stats:
        while generator.next_generated():
            pass
    generator.close()
    return float(stats.generation_time)


def _caches(model: Any, prefixes: list[Prompt]) -> list[Any]:
    """Return mlx-lm's cache, filled, for each prefix; equal prefixes are computed once."""
    filled: dict[tuple[int, ...], Any] = {}
    for prefix in map(tuple, prefixes):
        if prefix not in filled:
            filled[prefix] = make_prompt_cache(model)
            mx.eval(model(mx.array(prefix)[None], cache=filled[prefix]))
    return [copy.deepcopy(filled[tuple(prefix)]) for prefix in prefixes]
