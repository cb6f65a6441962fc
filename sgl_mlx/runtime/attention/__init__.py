"""Attention of a model step over the KV pool, in plain MLX, MLX's fused kernel or our kernels."""
