"""`sgl-mlx doctor`: checks of machine, libraries and model, and a report for an issue."""

from sgl_mlx.cli.doctor.command import doctor

__all__ = ["doctor"]
