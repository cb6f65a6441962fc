"""Metal kernels for attention over the KV pool, and the same functions in plain MLX.

`dispatch.choose_path` decides for each step whether the kernels or MLX's attention are used.
"""
