"""Kernels for MLX's CPU back end on Linux, in C++.

On a CPU, MLX is fast in float32 only, and runs a layer as many small operations. These
kernels multiply by packed 4-bit or 8-bit weights, attend to keys inside the KV pool, and compute
norms, rotary positions and gates in one operation each.
"""
