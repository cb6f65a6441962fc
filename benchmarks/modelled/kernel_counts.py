"""Operation counts of the attention kernels, from their plans: mmas, keys, partials.

Without a window, which only takes work away. The emulator counts the same (`tests/benchmarks`).
A key counts once each time a kernel reads it, and stands for its value too.
"""

from __future__ import annotations

from collections.abc import Iterator

from sgl_mlx.metal_kernels.ops import widest_block
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, tile_rows


def keys_ahead(dim: int) -> int:
    """Keys that K2 fetches together; at the end of an item it fetches the last one again."""
    teams = 2 if dim <= 64 else 1
    return teams * (4 if dim <= 128 else 2 if dim <= 256 else 1)


def tile_keys(dim: int, element: int) -> int:
    """Keys to a tile of K1 and K3, as in `attention.h`."""
    size = dim * element
    return 8 if size > 1152 else 16 if size > 512 else 32


def extend_mmas(plan: ExtendPlan, heads: int, kv_heads: int, dim: int, element: int) -> int:
    """8x8 multiply-accumulates of K1."""
    return kv_heads * _mmas(_extend_meetings(plan, heads // kv_heads, dim), dim, element)


def extend_keys(plan: ExtendPlan, heads: int, kv_heads: int, dim: int) -> int:
    """Keys that K1 reads, from the pool or new."""
    return kv_heads * sum(_extend_meetings(plan, heads // kv_heads, dim))


def shared_mmas(plan: DecodePlan, heads: int, kv_heads: int, dim: int, element: int) -> int:
    """8x8 multiply-accumulates of K3."""
    return kv_heads * _mmas(_shared_meetings(plan, heads // kv_heads, dim), dim, element)


def shared_keys(plan: DecodePlan, heads: int, kv_heads: int, dim: int) -> int:
    """Keys that K3 reads."""
    return kv_heads * sum(_shared_meetings(plan, heads // kv_heads, dim))


def own_keys(plan: DecodePlan, tail: int, heads: int, kv_heads: int, dim: int) -> int:
    """Keys that K2 reads, of private prefixes and of `tail` columns."""
    blocks = -(-plan.tokens * (heads // kv_heads) // widest_block(dim, dim))
    lengths = (e - s + tail for s, e in zip(plan.starts, plan.ends, strict=True))
    items = (min(plan.chunk, n - at) for n in lengths for at in range(0, n, plan.chunk))
    ahead = keys_ahead(dim)
    return kv_heads * blocks * sum(-(-keys // ahead) * ahead for keys in items)


def partial_elements(plan: DecodePlan, heads: int, dim: int) -> int:
    """Float32 elements that K2 and K3 leave to K2b: sums, peak and mass of each vector."""
    return (plan.item_count + plan.shared_partial_count) * plan.tokens * heads * (dim + 2)


def _extend_meetings(plan: ExtendPlan, group: int, dim: int) -> Iterator[int]:
    """For each tile of query vectors of one KV head: the keys it attends to."""
    size = tile_rows(dim, dim)
    for row in plan.rows:
        vectors = row.tokens * group
        for first in range(0, vectors, size):
            last = min(first + size, vectors) - 1
            yield len(row.prefix) + last // group + 1


def _shared_meetings(plan: DecodePlan, group: int, dim: int) -> Iterator[int]:
    """For each tile of query vectors of one KV head and each chunk of its span: the keys."""
    for span in plan.spans:
        tiles = -(-(span.last - span.first) * plan.tokens * group // tile_rows(dim, dim))
        for at in range(0, len(span.slots), plan.chunk):
            yield from [min(plan.chunk, len(span.slots) - at)] * tiles


def _mmas(meetings: Iterator[int], dim: int, element: int) -> int:
    """Scores and weighted values of whole tiles of keys."""
    keys = tile_keys(dim, element)
    of_a_tile = 2 * (tile_rows(dim, dim) // 8) * (dim // 8) * (keys // 8)
    return of_a_tile * sum(-(-count // keys) for count in meetings)
