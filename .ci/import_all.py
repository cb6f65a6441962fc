"""Imports every module of the package, so that a name that an old dependency lacks is found."""

from __future__ import annotations

import importlib
import pkgutil

import sgl_mlx

SKIPPED = ("sgl_mlx.cpu_kernels.build", "sgl_mlx.benchmarks")
"""Modules that need a compiler or an extra of their own."""


def main() -> None:
    for module in pkgutil.walk_packages(sgl_mlx.__path__, "sgl_mlx."):
        if not module.name.startswith(SKIPPED):
            importlib.import_module(module.name)


if __name__ == "__main__":
    main()
