"""Attention of a step over the pool, in plain MLX, MLX's fused kernel or kernels of our own."""
