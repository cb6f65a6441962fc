"""Every figure in the README has a command here that makes it: `sgl-mlx bench`."""
