"""The scheduler: decides which sequences run and what each step computes. It never uses MLX."""
