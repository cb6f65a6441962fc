"""Metal kernels for attention over the pool, and the same functions in plain MLX.

`dispatch.choose_path` says which of them a step should take.
"""
