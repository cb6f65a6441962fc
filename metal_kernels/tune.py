"""Measuring of this machine's cut-overs by a short sweep, and a cache of the results.

Cut-overs are the sizes of a step at which our kernels take over from MLX's attention, or the
other way round.

A cache file is valid for one chip, version of macOS and MLX, source of the kernels, and attention
heads of a model. If one of these differs, the sweep runs again. An unreadable file is ignored.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from sgl_mlx.metal_kernels import ops
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import CHUNKS, DecodePlan, ExtendPlan, ExtendRow
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from sgl_mlx.metal_kernels.records import cache_folder, key_of, machine, write_json
from sgl_mlx.metal_kernels.selftest import Case, pool_of

PREFIXES = (256, 1024, 4096, 8192)
EXTENDS = (16, 32, 64, 128, 255)
ROWS = (1, 2, 4, 8)
_DECODED = 2048
"""Number of keys per sequence in the decode steps that are measured."""

_REPEATS = 5

Attend = Callable[[], mx.array]


class Sweep:
    """Measurement that compares our kernels with a gather and MLX's attention.

    Args:
        case: the heads, dims, dtype and pool format to measure.
        seconds: measures the time of a call; `median_seconds` by default.
    """

    def __init__(
        self, case: Case, kernels: Kernels, seconds: Callable[[Attend], float] | None = None
    ) -> None:
        self._case, self._kernels = case, kernels
        self._seconds = seconds or median_seconds
        self._options = AttentionOptions(case.dim**-0.5)
        self._pool = self._make_pool(PREFIXES[-1] + 1)

    def run(self) -> CutOvers:
        """Measure the times and return the cut-overs derived from them."""
        extends = tuple((prefix, self._longest_extend(prefix)) for prefix in PREFIXES)
        found = CutOvers(((0, extends[0][1]), *extends), decode_items=self._decode_items())
        return replace(found, decode_from_rows=self._first_decode(found))

    def _longest_extend(self, prefix: int) -> int:
        """Find the largest of `EXTENDS` up to which the extend kernel is always faster.

        If the kernel is slower from the smallest on, return 0.
        """
        best = 0
        for new in EXTENDS:
            if not self._wins(*self._extend_pair(new, prefix)):
                break
            best = new
        return best

    def _decode_items(self) -> int:
        """Find the number of chunks, over all KV heads, for which one row's decode is fastest."""
        seconds = {c: self._seconds(self._decode_pair(1, _DECODED, c)[0]) for c in CHUNKS}
        return _DECODED * self._case.kv_heads // min(seconds, key=lambda chunk: seconds[chunk])

    def _first_decode(self, cut_overs: CutOvers) -> int:
        """Find the smallest of `ROWS` from which the decode kernel is always faster.

        If the kernel is never faster, return twice the largest of `ROWS`.
        """
        first = ROWS[-1] * 2
        for rows in reversed(ROWS):
            chunk = cut_overs.chunk(rows * _DECODED, self._case.kv_heads)
            if not self._wins(*self._decode_pair(rows, _DECODED, chunk)):
                break
            first = rows
        return first

    def _wins(self, kernel: Attend, dense: Attend) -> bool:
        return self._seconds(kernel) <= self._seconds(dense)

    def _extend_pair(self, new: int, prefix: int) -> tuple[Attend, Attend]:
        plan = ExtendPlan([ExtendRow(self._scattered(prefix), new)])
        q, k, v = self._random(new)
        inputs = ExtendInputs(q, k, v, self._pool, plan, self._options)
        return (
            lambda: ops.extend_attention(inputs, self._kernels),
            lambda: dense(q[None], k[None], v[None], self._pool, [plan.rows[0].prefix], "causal"),
        )

    def _decode_pair(self, rows: int, prefix: int, chunk: int) -> tuple[Attend, Attend]:
        prefixes = [self._scattered(prefix)] * rows
        plan = DecodePlan(prefixes, chunk=chunk)
        q, k, v = (x[:, None] for x in self._random(rows))
        copied = self._pool.gather(mx.array(prefixes, mx.int32), q.dtype, v.shape[-1])
        whole = tuple(mx.concatenate(list(x), axis=1) for x in zip(copied, (k, v), strict=True))
        mx.eval(whole)  # not timed: an epoch of many steps gathers only once
        inputs = DecodeInputs(q[:, 0], k, v, 1, self._pool, plan, self._options)
        return (
            lambda: ops.decode_attention(inputs, self._kernels),
            lambda: sdpa(q, whole[0], whole[1], None),
        )

    def _scattered(self, length: int) -> list[int]:
        """List different slots, in an order in which neighbours are far apart in the pool."""
        size = PREFIXES[-1]
        return [1 + i * 4099 % size for i in range(length)]

    def _random(self, tokens: int) -> tuple[mx.array, mx.array, mx.array]:
        case = self._case
        value_dim = case.value_dim or case.dim
        sizes = (case.heads, case.dim), (case.kv_heads, case.dim), (case.kv_heads, value_dim)
        drawn = [mx.random.normal((tokens, *size)).astype(case.dtype) for size in sizes]
        if case.values_in_keys:
            drawn[2] = drawn[1][..., :value_dim]
        mx.eval(drawn)
        return drawn[0], drawn[1], drawn[2]

    def _make_pool(self, slots: int) -> PoolLayer:
        _, keys, values = self._random(slots)
        case = self._case
        return pool_of(keys, None if case.values_in_keys else values, case.quantized)


def dense(
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    pool: PoolLayer,
    prefixes: list[Any],
    mask: str | None,
) -> mx.array:
    """Gather prefixes from the pool, then run MLX's fused attention over prefixes and new keys.

    Args:
        q, keys, values: of the new tokens, `(rows, tokens, heads, dim)`.
        prefixes: each row's prefix slots, all of one length.
        mask: "causal", or None if every query sees every key.
    """
    k, v = pool.gather(mx.array(prefixes, mx.int32), q.dtype, values.shape[-1])
    return sdpa(q, mx.concatenate([k, keys], axis=1), mx.concatenate([v, values], axis=1), mask)


def sdpa(q: mx.array, keys: mx.array, values: mx.array, mask: str | None) -> mx.array:
    q, keys, values = (x.swapaxes(1, 2) for x in (q, keys, values))
    return mx.fast.scaled_dot_product_attention(
        q, keys, values, scale=q.shape[-1] ** -0.5, mask=mask
    )


def median_seconds(attend: Attend) -> float:
    """Return the median time of `_REPEATS` evaluations, after one to warm up."""
    mx.eval(attend())
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        mx.eval(attend())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Tuning:
    """Cache of cut-overs: a file for each combination of machine, kernel text and heads."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder()

    def load(self, case: Case) -> CutOvers | None:
        """Load the cut-overs of a case; None if there is no readable file."""
        try:
            kept = json.loads(self._file(case).read_text())
            pairs = tuple((int(at), int(new)) for at, new in kept["extend_up_to"])
            sizes = (kept[x] for x in ("decode_until", "decode_from_rows", "decode_items"))
            return CutOvers(pairs, *map(int, sizes))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, case: Case, cut_overs: CutOvers) -> Path:
        """Write the cut-overs of a case to a file, atomically.

        Raises:
            OSError: the folder cannot be made or written.
        """
        file = self._file(case)
        write_json(file, {"case": str(case), **machine(), **asdict(cut_overs)})
        return file

    def _file(self, case: Case) -> Path:
        return self._folder / f"{key_of(str(heads_of(case)))}.json"


def heads_of(case: Case) -> Case:
    """Return the case without the fields on which cut-overs do not depend."""
    return replace(case, work="extend", window=None, capped=False, sinks=False)
