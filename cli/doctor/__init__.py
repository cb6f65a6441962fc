"""`sgl-mlx doctor`: checks of machine, libraries and model; with `--report`, written to a file."""

from sgl_mlx.cli.doctor.command import doctor

__all__ = ["doctor"]
