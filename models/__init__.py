"""Models: finding, describing and loading them, and running mlx-lm's architectures unchanged."""
