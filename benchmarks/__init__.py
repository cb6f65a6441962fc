"""Every figure in the README has a command here that makes it: `sgl-mlx bench`."""

from sgl_mlx.blas import load_fast_blas

load_fast_blas()  # before any module here imports mlx
