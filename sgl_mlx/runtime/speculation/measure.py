"""Measurement of how long steps take on this machine with this model, kept on disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sgl_mlx.core import SamplingParams
from sgl_mlx.metal_kernels.records import cache_folder, key_of, write_json
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row, Runner
from sgl_mlx.runtime.speculation.costs import Costs, curve

log = logging.getLogger(__name__)

EXTEND_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
DECODE_SIZES = (1, 2, 4, 8, 16, 32)
_PREFIX = 64
"""Tokens of the prefix before each measured row: those of a short conversation."""
_WIDTH = 3
"""Steps of a measured epoch."""
_ROUNDS = 3
"""Rounds over all sizes; other work on the machine seldom slows one size in all rounds."""
_ROW = 8
"""Most tokens of a measured row; larger steps have several rows."""


def kept_costs(description: str, slots: int, runner: Runner, states: int = 0) -> Costs | None:
    """Return the costs of steps: read from disk, or else measured now and written to disk.

    Args:
        description: text of all that the costs depend on besides the machine: model and kernels.
        slots: number of slots of the runner's pool, all free. Their content is overwritten.
        states: number of the runner's slots for recurrent state, all free too; 0 for a model
            without recurrent layers.

    Returns:
        The costs; None if measuring fails, which is logged: then nothing should be drafted. A
        failure to write the costs is logged, too.
    """
    file = cache_folder() / f"costs-{key_of(description)}.json"
    kept = _read(file)
    if kept is not None:
        return kept
    try:
        found = measure(runner, slots, states)
    except (RuntimeError, ValueError) as error:
        log.warning("nothing is drafted: the costs of steps cannot be measured: %s", error)
        return None
    try:
        write_json(file, {"extend": found.extend, "decode": found.decode})
    except OSError as error:
        log.warning("the costs of steps cannot be kept and will be measured again: %s", error)
    return found


def forget_costs() -> None:
    """Delete all kept costs, so that the next engine measures them again."""
    for file in cache_folder().glob("costs-*.json"):
        file.unlink(missing_ok=True)


def measure(
    runner: Runner, slots: int, states: int = 0, clock: Callable[[], float] = time.perf_counter
) -> Costs:
    """Measure steps of several sizes, each as the best of three rounds over all sizes.

    Args:
        slots, states: as for `kept_costs`.

    Raises:
        ValueError: the pool has too few slots.
    """
    prefix = tuple(range(1, min(_PREFIX, slots // 2) + 1))
    free = range(len(prefix) + 1, slots + 1)
    most_rows = states or slots
    row = partial(_row, prefix=prefix, recurrent=states > 0)

    def extend(size: int) -> float:
        counts = [min(_ROW, size - first) for first in range(0, size, _ROW)]
        rows = [row(i, count, count, free[i * _ROW :]) for i, count in enumerate(counts)]
        return _seconds(clock, lambda: runner.run(Extend(tuple(rows))))

    def decode(size: int) -> float:
        rows = tuple(row(i, 1, _WIDTH, free[i * _WIDTH :]) for i in range(size))
        ids = tuple(row.id for row in rows)

        def epoch() -> None:
            for step in range(_WIDTH):
                ahead = step + 1 < _WIDTH
                runner.run(Decode(ids, _WIDTH, ahead, rows if step == 0 else ()))
            runner.synchronise()

        return _seconds(clock, epoch) / _WIDTH

    extends = [size for size in EXTEND_SIZES if size <= min(len(free), most_rows * _ROW)]
    decodes = [size for size in DECODE_SIZES if size <= min(len(free) // _WIDTH, most_rows)]
    rounds = [([extend(n) for n in extends], [decode(n) for n in decodes]) for _ in range(_ROUNDS)]
    best = ([min(times) for times in zip(*side, strict=True)] for side in zip(*rounds, strict=True))
    extended, decoded = best
    return Costs(
        curve(list(zip(extends, extended, strict=True))),
        curve(list(zip(decodes, decoded, strict=True))),
    )


def _seconds(clock: Callable[[], float], run: Callable[[], object]) -> float:
    started = clock()
    run()
    return clock() - started


def _row(
    number: int,
    count: int,
    reserved: int,
    free: Sequence[int],
    prefix: tuple[int, ...],
    recurrent: bool,
) -> Row:
    """Make a row of `count` tokens, all but the first drafted; it gets `reserved` free slots."""
    return Row(
        id=f"cost-{number}",
        tokens=(0,) * count,
        prefix=prefix,
        slots=tuple(free[:reserved]),
        position=len(prefix),
        sample=True,
        params=SamplingParams(temperature=0, ignore_eos=True),
        drafted=count - 1,
        state=(0, number + 1) if recurrent else None,
    )


def _read(file: Path) -> Costs | None:
    """Read costs from a file; return None if the file does not exist or cannot be read."""
    try:
        content = json.loads(file.read_text("utf-8"))
        return Costs(curve(content["extend"]), curve(content["decode"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
