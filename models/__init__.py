"""Finding, describing and loading models; running mlx-lm's architectures unchanged."""
