"""The engine: radix-cached, continuously batched generation. Knows nothing of the language.

Importing this package makes a fast BLAS visible before anything in it imports mlx.
"""

from sgl_mlx.blas import load_fast_blas

load_fast_blas()
