"""`sgl-mlx doctor`: the checks, a file for each subject, and the report for an issue."""

from sgl_mlx.cli.doctor.command import doctor

__all__ = ["doctor"]
