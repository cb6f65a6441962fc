"""Models: finding, describing and loading them, and running mlx-lm's architectures unchanged.

Importing this package makes a fast BLAS visible before anything in it imports mlx.
"""

from sgl_mlx.blas import load_fast_blas

load_fast_blas()
