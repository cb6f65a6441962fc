"""GGUF files: headers, configuration and weights, in the form that mlx-lm's models take."""
