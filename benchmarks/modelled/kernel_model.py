"""Modelled times of the attention kernels on Apple chips, from exact counts.

Nothing runs on a Mac. The counts are of matrix multiply-accumulates, of keys and partial results
read and written, and of dispatches. They follow exactly from the kernels' plans (`kernel_counts`).
One formula turns counts into a time:

    max(flops / (0.65 * peak * efficiency), bytes / (0.8 * bandwidth)) + 5 us * dispatches

0.65 and 0.8 are the shares of a chip's peak and bandwidth that llama.cpp and MLX reach; 5 us is the
time of a small dispatch. The efficiencies (`OURS`, `DENSE_LONG`, `DENSE_SHORT`) are assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from sgl_mlx.benchmarks.modelled.kernel_counts import (
    extend_keys,
    extend_mmas,
    own_keys,
    partial_elements,
    shared_keys,
    shared_mmas,
)
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.plan import (
    TILE_ROWS,
    DecodePlan,
    ExtendPlan,
    ExtendRow,
    SharedSpan,
)

ELEMENT = 2
"""Bytes of a float16."""

OURS, DENSE_LONG, DENSE_SHORT = 0.5, 0.9, 0.35
"""Assumed efficiencies: of our kernels; of MLX's attention at 4,096 keys and more, and below 1,024.

Between 1,024 and 4,096 keys, the last two are interpolated.
"""

EPOCH = 64
"""Decode steps for which the runtime gathers the keys once, when it runs without our kernels."""

_MMA_FLOPS = 2 * 8 * 8 * 8


@dataclass(frozen=True)
class Chip:
    """Published figures of a GPU: bandwidth in GB/s, and peak TFLOPS at float16."""

    name: str
    bandwidth: float
    tflops: float


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("m1", 68, 2.6),
        Chip("m1-max", 400, 10.6),
        Chip("m2-ultra", 800, 27.2),
        Chip("m3-max", 400, 14.0),
        Chip("m4-max", 546, 16.0),
    )
}


@dataclass(frozen=True)
class Case:
    """Attention of one layer in one step.

    Attributes:
        new: new tokens of each row.
        prefix: keys before the new tokens, for each row.
        rows: number of rows (sequences).
        dim: width of a head.
        shared: how many of the first keys of the prefix are the same slots for all rows.
    """

    new: int
    prefix: int
    rows: int
    heads: int
    kv_heads: int
    dim: int
    shared: int = 0

    def __str__(self) -> str:
        shared = f", {self.shared} shared" if self.shared else ""
        return (
            f"{self.rows} x {self.new} new over {self.prefix}{shared}; "
            f"{self.heads}/{self.kv_heads} heads of {self.dim}"
        )


@dataclass(frozen=True)
class Cost:
    """Work of one layer's attention in one step; `efficiency` is as in the module's formula."""

    flops: int
    bytes: int
    dispatches: int
    efficiency: float

    def microseconds(self, chip: Chip) -> float:
        """Return the modelled time on a chip, by the module's formula."""
        compute = self.flops / (0.65 * chip.tflops * 1e12 * self.efficiency)
        memory = self.bytes / (0.8 * chip.bandwidth * 1e9)
        return max(compute, memory) * 1e6 + 5.0 * self.dispatches


@dataclass(frozen=True)
class Modelled:
    """Modelled microseconds per layer: with our kernels, and with gathering and MLX's attention."""

    case: Case
    chip: Chip
    ours: float
    gathered: float

    @property
    def ratio(self) -> float:
        return self.gathered / self.ours

    def to_dict(self) -> dict[str, Any]:
        return {
            "modelled": True,
            "chip": self.chip.name,
            **asdict(self.case),
            "ours_us": round(self.ours, 1),
            "gathered_us": round(self.gathered, 1),
            "ratio": round(self.ratio, 2),
        }


def model(chip: Chip) -> list[Modelled]:
    """Return the modelled times of all `cases` on a chip."""
    return [
        Modelled(case, chip, ours(case).microseconds(chip), gathered(case).microseconds(chip))
        for case in cases()
    ]


def plot(rows: list[Modelled], path: str) -> None:
    """Plot ratios by prefix length to a file, with a line for each kind of step.

    Only rows with 32 query heads and 8 KV heads are plotted.

    Args:
        rows: the results of `model` for one chip.
        path: the file; the suffix selects the format.

    Raises:
        BenchmarkError: when matplotlib is missing or cannot write the file.
    """
    try:
        from matplotlib.figure import Figure  # heavy, and an extra
    except ImportError:
        raise BenchmarkError("plots need matplotlib: pip install 'sgl-mlx[plots]'") from None

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if (row.case.heads, row.case.kv_heads) == (32, 8):
            kind = "shared" if row.case.shared else "own"
            label = f"{row.case.rows} x {row.case.new} new, {kind} prefix"
            lines.setdefault(label, []).append((row.case.prefix, row.ratio))
    for label, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set(xscale="log", yscale="log", xlabel="prefix keys", ylabel="gather + SDPA over ours")
    axes.set_title(f"MODELLED on {rows[0].chip.name}, not measured: 32/8 heads of 128, float16")
    axes.legend(fontsize="small", ncols=2)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path}: {error}") from error


def cases() -> Iterator[Case]:
    """Yield short and long extends and decodes, alone and in batches, for the heads of four models.

    MLX runs heads of width 256 unfused, which takes longer than the fused attention modelled here.
    """
    models = ((9, 3, 64), (32, 8, 128), (32, 32, 128), (8, 4, 256))
    for (heads, kv_heads, dim), prefix, rows in product(models, (512, 2048, 8192), (1, 8, 32)):
        for new in (1, 16, 64, 256):
            yield Case(new, prefix, rows, heads, kv_heads, dim)
            if rows > 1 and new == 1:  # the kernel for extends does not share
                yield Case(new, prefix, rows, heads, kv_heads, dim, shared=prefix - 64)


def ours(case: Case) -> Cost:
    """Compute the cost with our kernels: K1 or, for decode, K2, K3, K2b (see `kernel_counts`)."""
    return _extend(case) if case.new > DecodePlan.MAX_TOKENS else _decode(case)


def gathered(case: Case) -> Cost:
    """Compute the cost without our kernels: a gather of the prefixes, then MLX's fused attention.

    A decode step counts `1 / EPOCH` of the copy, since an epoch of steps shares one copy.
    """
    keys = case.prefix + case.new
    pairs = case.rows * (case.new * case.prefix + case.new * (case.new + 1) // 2)
    copied = 2 * case.rows * case.prefix * _row_bytes(case) // (EPOCH if case.new == 1 else 1)
    # the query heads of a group read the same keys, from the cache for all but the first
    read = case.rows * keys * _row_bytes(case) * -(-case.new // TILE_ROWS)
    share = min(max((keys - 1024) / 3072, 0.0), 1.0)
    efficiency = DENSE_SHORT + share * (DENSE_LONG - DENSE_SHORT)
    calls = 1 if case.new == 1 else case.rows  # rows of several tokens are not padded together
    flops = 4 * case.heads * case.dim * pairs
    return Cost(flops, copied + read + _io_bytes(case), 3 * calls, efficiency)


def _extend(case: Case) -> Cost:
    plan = ExtendPlan([ExtendRow(range(1, case.prefix + 1), case.new)] * case.rows)
    heads = case.heads, case.kv_heads
    flops = extend_mmas(plan, *heads, case.dim, ELEMENT) * _MMA_FLOPS
    moved = extend_keys(plan, *heads, case.dim) * _key_bytes(case)
    return Cost(flops, moved + _io_bytes(case), 1, OURS)


def _decode(case: Case) -> Cost:
    own = case.prefix - case.shared
    spans = [SharedSpan(0, case.rows, 0, range(1, case.shared + 1))] if case.shared else []
    rows = [range(1, own + 1)] * case.rows
    chunk = CutOvers().chunk(case.rows * case.prefix, case.kv_heads)
    plan = DecodePlan(rows, spans, tokens=case.new, width=case.new, chunk=chunk)
    heads = case.heads, case.kv_heads
    flops = shared_mmas(plan, *heads, case.dim, ELEMENT) * _MMA_FLOPS
    flops += 4 * case.heads * case.dim * case.new * case.rows * (own + case.new)
    keys = shared_keys(plan, *heads, case.dim) + own_keys(plan, case.new, *heads, case.dim)
    partials = 2 * 4 * partial_elements(plan, case.heads, case.dim)  # written, then read
    moved = keys * _key_bytes(case) + partials
    return Cost(flops, moved + _io_bytes(case), 3 if spans else 2, OURS)


def _key_bytes(case: Case) -> int:
    """Return the bytes of one key and one value of one head."""
    return 2 * case.dim * ELEMENT


def _row_bytes(case: Case) -> int:
    """Return the bytes of one token's keys and values."""
    return case.kv_heads * _key_bytes(case)


def _io_bytes(case: Case) -> int:
    """Return the bytes of queries read and outputs written."""
    return 2 * case.rows * case.new * case.heads * case.dim * ELEMENT
