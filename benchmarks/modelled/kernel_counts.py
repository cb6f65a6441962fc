"""Operation counts of the attention kernels, computed from the kernels' plans.

K1 is the kernel for extends. For decode, K2 reads the keys of one sequence, K3 reads the keys that
several sequences share, and K2b combines the partial results of both. An mma is a
multiply-accumulate of 8x8 matrices. A key is counted each time a kernel reads it, together with its
value. Sliding windows, which only reduce work, are ignored. Tests in `tests/benchmarks` check the
counts against an emulator.

In all functions, `dim` is the width of a head, `element` the bytes of one number of a key, and
`group` the number of query heads per KV head.
"""

from __future__ import annotations

from collections.abc import Iterator

from sgl_mlx.metal_kernels.ops import widest_block
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, tile_rows


def keys_ahead(dim: int) -> int:
    """Return the number of keys that K2 fetches together; a partial fetch costs like a full one."""
    teams = 2 if dim <= 64 else 1
    return teams * (4 if dim <= 128 else 2 if dim <= 256 else 1)


def tile_keys(dim: int, element: int) -> int:
    """Return the number of keys in a tile of K1 and K3, as in `attention.h`."""
    size = dim * element
    return 8 if size > 1152 else 16 if size > 512 else 32


def extend_mmas(plan: ExtendPlan, heads: int, kv_heads: int, dim: int, element: int) -> int:
    """Count the 8x8 multiply-accumulates of K1."""
    return kv_heads * _mmas(_extend_meetings(plan, heads // kv_heads, dim), dim, element)


def extend_keys(plan: ExtendPlan, heads: int, kv_heads: int, dim: int) -> int:
    """Count the keys that K1 reads: those in the pool and the new ones."""
    return kv_heads * sum(_extend_meetings(plan, heads // kv_heads, dim))


def shared_mmas(plan: DecodePlan, heads: int, kv_heads: int, dim: int, element: int) -> int:
    """Count the 8x8 multiply-accumulates of K3."""
    return kv_heads * _mmas(_shared_meetings(plan, heads // kv_heads, dim), dim, element)


def shared_keys(plan: DecodePlan, heads: int, kv_heads: int, dim: int) -> int:
    """Count the keys that K3 reads."""
    return kv_heads * sum(_shared_meetings(plan, heads // kv_heads, dim))


def own_keys(plan: DecodePlan, tail: int, heads: int, kv_heads: int, dim: int) -> int:
    """Count the keys that K2 reads: each row's own prefix and `tail` newer keys."""
    blocks = -(-plan.tokens * (heads // kv_heads) // widest_block(dim, dim))
    lengths = (e - s + tail for s, e in zip(plan.starts, plan.ends, strict=True))
    items = (min(plan.chunk, n - at) for n in lengths for at in range(0, n, plan.chunk))
    ahead = keys_ahead(dim)
    return kv_heads * blocks * sum(-(-keys // ahead) * ahead for keys in items)


def partial_elements(plan: DecodePlan, heads: int, dim: int) -> int:
    """Count the float32 elements of partial results: sums, peak and mass of each vector."""
    return (plan.item_count + plan.shared_partial_count) * plan.tokens * heads * (dim + 2)


def _extend_meetings(plan: ExtendPlan, group: int, dim: int) -> Iterator[int]:
    """Yield the number of keys that each tile of query vectors reads in K1, for one KV head."""
    size = tile_rows(dim, dim)
    for row in plan.rows:
        vectors = row.tokens * group
        for first in range(0, vectors, size):
            last = min(first + size, vectors) - 1
            yield len(row.prefix) + last // group + 1


def _shared_meetings(plan: DecodePlan, group: int, dim: int) -> Iterator[int]:
    """Yield the number of keys that each tile of query vectors reads in K3, for one KV head.

    A span of shared keys is read in chunks; each pair of a tile and a chunk yields one number.
    """
    for span in plan.spans:
        tiles = -(-(span.last - span.first) * plan.tokens * group // tile_rows(dim, dim))
        for at in range(0, len(span.slots), plan.chunk):
            yield from [min(plan.chunk, len(span.slots) - at)] * tiles


def _mmas(meetings: Iterator[int], dim: int, element: int) -> int:
    """Count the 8x8 multiply-accumulates for scores and weighted values.

    Args:
        meetings: for each tile of query vectors, the number of keys that it reads. The number is
            rounded up to whole tiles of keys.
    """
    keys = tile_keys(dim, element)
    of_a_tile = 2 * (tile_rows(dim, dim) // 8) * (dim // 8) * (keys // 8)
    return of_a_tile * sum(-(-count // keys) for count in meetings)
