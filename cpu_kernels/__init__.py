"""Kernels for MLX's CPU back end on Linux, in C++.

On a CPU, MLX is fast in float32 only, and runs a layer as some hundred small operations. These
kernels multiply weights in their 4 or 8 bits, attend to keys inside the pool, and compute norms,
rotary positions and gates in one operation each.
"""
