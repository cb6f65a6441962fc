"""Time to the first token of a nested program whose long prefix was evicted from the pool.

One program is compiled with the prefetch pass (ours) and without it (theirs). Each version runs on
an engine of its own; ours keeps evicted prefixes on disk. The calling program writes a draft. The
nested program judges the draft after a long constant text. The measured time is from the end of the
draft to the nested program's first token. Before each run the pool is emptied.
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
"""Tokens of the draft, which the calling program generates while the prefetch runs."""

_FILLER = 400


def caller(handbook: str) -> sgl.SglFunction:
    """Return a program that writes a draft and calls a nested program to judge it.

    The prompt of the nested program begins with `handbook`.
    """

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
    """Measure nested programs per second, with the prefetch pass (ours) and without.

    Args:
        ours: an engine with a disk cache.
        theirs: an engine without a disk cache.
        handbook: the long constant text.
    """
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
    """Compute a text, then evict it from the pool by other prompts."""
    engine.prefill((Text(text),)).result()
    drawn, slots = random.Random(1), engine.get_server_info()["max_total_num_tokens"]
    for _ in range(0, slots, _FILLER):
        other = [drawn.randrange(1000, 20000) for _ in range(_FILLER)]
        engine.generate(input_ids=other, max_new_tokens=1)


def _verdicts_a_second(program: Program, engine: Engine) -> float:
    engine.flush_cache()
    sgl.set_default_backend(engine)  # for the nested program
    state = program.run(backend=engine, stream=True)
    for _ in state.text_iter("draft"):
        pass
    started = time.perf_counter()
    state.sync()
    return 1 / (time.perf_counter() - started)
