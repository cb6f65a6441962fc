"""Attention of a step over the pool, in plain MLX, by MLX's fused kernel or by our kernels."""
