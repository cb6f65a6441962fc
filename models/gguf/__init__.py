"""GGUF files: their headers, configuration and weights, as mlx-lm's architectures take them."""
