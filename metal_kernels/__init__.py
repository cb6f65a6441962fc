"""Metal kernels for attention over the pool, and the same functions in plain MLX.

`dispatch.choose_path` chooses between them for each step.
"""
