"""Choice of the ways to attend over a KV pool that this machine and the model allow."""

from __future__ import annotations

from sgl_mlx.cpu_kernels.attention import CpuAttention
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.metal_kernels.mode import cut_overs, mode, open_kernels
from sgl_mlx.models import cpu_math
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime.attention.kernels import pool_fits
from sgl_mlx.runtime.attention.select import AttentionPaths, layer_cases
from sgl_mlx.runtime.pool.kv import KVPool


def attention_paths(adapter: Adapter, pool: KVPool, share: bool) -> AttentionPaths:
    """Make the `AttentionPaths` of a model: the ways to attend over its KV pool on this machine.

    With `share=False`, each sequence attends to its prefix alone, even if others have the same
    prefix.
    """
    if not share:
        return AttentionPaths(pool, share=False)
    if cpu_math.on_cpu():
        compiled = open_cpu_kernels() if adapter.ragged else None
        return AttentionPaths(pool, None if compiled is None else CpuAttention(compiled))
    asked = mode()
    kernels = open_kernels(asked) if pool.layers else None
    if kernels is None or not adapter.ragged or not pool_fits(pool, kernels):
        return AttentionPaths(pool)
    cases = layer_cases(adapter.attentions, pool)
    every = [case for mine in cases.values() for case in mine]
    kernels.learn(every)
    good = [case for case in every if not kernels.failed([case])]
    cut = cut_overs(good[0], asked) if good else None
    return AttentionPaths(pool, kernels, cut, cases=cases)
