"""Kernels for MLX's CPU back end, in C++: what the Metal kernels are on a Mac, on Linux.

MLX multiplies fast on a CPU in float32 alone, and takes a layer apart into some hundred small
operations. These kernels read weights in their 4 or 8 bits, attend to keys where they lie in the
pool, and normalise, turn and gate in one operation each.
"""
