"""Overhead of a program without a model, compiled against interpreted.

Programs per second are measured on a backend that answers at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.lang.program import Program
from sgl_mlx.testing import ScriptedBackend

SHOTS = "Question: What is the capital of France?\nAnswer: Paris\n\n"


@sgl.function
def few_shot(s: Any, question: str, topic: str) -> None:
    """Ask a question after an example; the prompt also repeats the outputs of both `gen`s."""
    s += "You answer questions about " + topic + ".\n\n"
    s += SHOTS
    s += f"Question: {question}\nAnswer:"
    s += sgl.gen("answer", max_tokens=16, stop="\n", temperature=0)
    s += "\nIn other words:"
    s += sgl.gen("other", max_tokens=16, stop="\n", temperature=0)
    s += f"\nSo it is {s['answer']}, that is {s['other']}.\n"


@sgl.function
def two_turns(s: Any, question: str, topic: str) -> None:
    """Hold a conversation of five turns, two of them written by the model."""
    s += sgl.system("You are brief. You know all about " + topic + ".")
    s += sgl.user(f"Tell me: {question}")
    s += sgl.assistant(sgl.gen("answer", max_tokens=16, temperature=0))
    s += sgl.user("Are you sure?")
    s += sgl.assistant(sgl.select("sure", ["Yes.", "No."]))


PROGRAMS = (few_shot, two_turns)


def overhead(programs: int = 1000, repeats: int = 9) -> list[Pair]:
    """Measure programs per second of `PROGRAMS`, compiled (ours) and interpreted (theirs).

    Args:
        programs: number of runs of a program in a batch, which uses one thread.
        repeats: number of measured pairs of batches for each program.
    """
    rows = [{"question": f"What is {i} + {i}?", "topic": "numbers"} for i in range(programs)]
    return [_pair(program, rows, repeats) for program in PROGRAMS]


def _pair(program: sgl.SglFunction, rows: Sequence[Mapping[str, Any]], repeats: int) -> Pair:
    compiled = program.compile()

    def speed(of: Program) -> float:
        backend = ScriptedBackend(" fine.")
        start = time.perf_counter()
        of.run_batch(rows, backend=backend, num_threads=1)
        return len(rows) / (time.perf_counter() - start)

    name = f"{program.name}, compiled against interpreted"
    return measure_pairs(
        name, "programs/s", 1.3, lambda: speed(compiled), lambda: speed(program), repeats
    )
