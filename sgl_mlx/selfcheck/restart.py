"""Runs of programs in a new process, which shares nothing with this one but the disk cache."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from sgl_mlx.selfcheck.recording import Answer
from sgl_mlx.selfcheck.running import counted, run_on
from sgl_mlx.selfcheck.statements import Program
from sgl_mlx.selfcheck.ways import Way, functions_of

Found = tuple[list[list[Answer]], dict[str, int]]


def run_elsewhere(
    path: str, options: Mapping[str, Any], way: Way, programs: Sequence[Program]
) -> Found:
    """Run programs on an engine of a new process; return their answers and the engine's counts.

    Args:
        path: path of the model.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_run, path, dict(options), way, list(programs)).result()


def _run(path: str, options: dict[str, Any], way: Way, programs: list[Program]) -> Found:
    from sgl_mlx.blas import load_fast_blas

    load_fast_blas()  # before mlx is imported, or it would have no effect
    from sgl_mlx.runtime.engine import Engine

    with Engine(path, **options) as engine:
        groups = [functions_of(way, program) for program in programs]
        return run_on(engine, way, groups, random.Random(1)), counted(engine)
