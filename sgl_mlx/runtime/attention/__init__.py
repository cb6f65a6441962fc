"""Attention of a step over the KV pool: in plain MLX, by MLX's fused kernel or by our kernels."""
