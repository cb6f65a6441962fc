"""Time to the first token of a nested program whose long prefix was evicted from the pool.

The same program, compiled with the prefetch pass (ours) and without it (theirs), each on an engine
of its own; ours keeps evicted prefixes on disk. The caller writes a draft; the nested program reads
it after a long constant text. The clock starts when the draft is done and stops at the nested
program's first token. Before each run the pools are emptied.
"""

from __future__ import annotations

import random
import time
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.core import Text
from sgl_mlx.lang.program import Program
from sgl_mlx.runtime.engine import Engine

DRAFT = 64
"""Tokens that the caller generates while the prefetch runs."""

_FILLER = 400


def caller(handbook: str) -> sgl.SglFunction:
    """Make a program whose nested program, which begins with `text`, judges a draft."""

    @sgl.function
    def judge(s: Any, draft: str) -> None:
        s += handbook + "\nDraft: " + draft + "\nVerdict:"
        s += sgl.gen("verdict", max_tokens=1, temperature=0, ignore_eos=True)

    @sgl.function
    def write(s: Any) -> None:
        s += "Write two sentences about bridges.\n"
        s += sgl.gen("draft", max_tokens=DRAFT, temperature=0, ignore_eos=True)
        s += "\nVerdict:" + judge(draft=s["draft"])["verdict"]

    return write


def compare(ours: Engine, theirs: Engine, handbook: str, repeats: int) -> Pair:
    """Measure verdicts per second with and without the disk cache."""
    program = caller(handbook)
    with_pass, without = program.compile(), program.compile(passes=())
    _evict(ours, handbook)
    return measure_pairs(
        "nested program after an evicted prefix: with the prefetch pass / without",
        "1/s",
        5.0,
        lambda: _verdicts_a_second(with_pass, ours),
        lambda: _verdicts_a_second(without, theirs),
        repeats,
    )


def _evict(engine: Engine, text: str) -> None:
    """Compute a text, then push it out of the pool."""
    engine.prefill((Text(text),)).result()
    drawn, slots = random.Random(1), engine.get_server_info()["max_total_num_tokens"]
    for _ in range(0, slots, _FILLER):
        other = [drawn.randrange(1000, 20000) for _ in range(_FILLER)]
        engine.generate(input_ids=other, max_new_tokens=1)


def _verdicts_a_second(program: Program, engine: Engine) -> float:
    engine.flush_cache()
    sgl.set_default_backend(engine)  # of the nested program
    state = program.run(backend=engine, stream=True)
    for _ in state.text_iter("draft"):
        pass
    started = time.perf_counter()
    state.sync()
    return 1 / (time.perf_counter() - started)
