"""The scheduler: which sequences run, and what each step computes. Plain integers, no mlx."""
