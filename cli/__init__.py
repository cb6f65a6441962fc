"""The command line, the only part that prints: one command a file, a folder for
the benchmarks; `kernels` and `models` are small groups.

Importing this loads click and nothing heavier: commands import what they need when they run, so
that `sgl-mlx --help` answers at once.
"""

from sgl_mlx.cli.commands import main

__all__ = ["main"]
