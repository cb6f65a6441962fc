"""The command line `sgl-mlx`, the only part of the package that prints.

Most commands have one file each. `bench` and `doctor` are folders; `kernels` and `models` are
groups of commands in one file.

This module imports nothing heavier than click. Commands import what they need when they run, so
that `sgl-mlx --help` is fast.
"""

from sgl_mlx.cli.commands import main

__all__ = ["main"]
