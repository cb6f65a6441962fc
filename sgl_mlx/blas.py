"""A fast BLAS for MLX's CPU back end on Linux.

The Linux wheel of MLX is linked against the reference BLAS, some twenty times slower than OpenBLAS
or MKL. Symbols of a library that is loaded globally *before* MLX win over those of the wheel, so
the BLAS is loaded at the moment `mlx.core` is first imported, by whomever: `import sgl_mlx` puts a
finder for that on `sys.meta_path`. A process that never imports mlx loads none. On other systems
all this does nothing.

If mlx came before sgl_mlx, everything works, but products of float32 matrices stay slow, and
`load_fast_blas` warns of that when a model is loaded for the CPU.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sgl_mlx import machine

_SYSTEM_NAMES = ("libopenblas.so.0", "libopenblas.so", "libopenblaso.so.0", "libopenblasp.so.0")
_REMEDY = "install one: `apt-get install libopenblas0-pthread` or `pip install mkl`"


class SlowBlasWarning(UserWarning):
    """MLX will multiply matrices with the reference BLAS."""


@dataclass(frozen=True)
class Blas:
    """A library that was loaded; it has no effect when MLX came first (`too_late`)."""

    library: str
    too_late: bool = False


class BlasBeforeMlx:
    """Import finder that finds nothing, but loads a fast BLAS when `mlx.core` is looked for."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Load the BLAS if `name` is `mlx.core`; the other finders then find the module."""
        if name == "mlx.core":
            load_fast_blas()


def load_fast_blas_before_mlx() -> None:
    """Have `load_fast_blas` called right before the first import of `mlx.core`."""
    if machine.system() == "linux" and not any(isinstance(f, BlasBeforeMlx) for f in sys.meta_path):
        sys.meta_path.insert(0, BlasBeforeMlx())


@cache
def load_fast_blas() -> Blas | None:
    """Load the first of `SGL_MLX_BLAS`, MKL and OpenBLAS that loads; later calls just answer.

    Returns:
        What was loaded, or None where none was found, or none is needed (not on Linux).

    Warns:
        SlowBlasWarning: once, with the remedy, when there is none or it came too late.
    """
    if machine.system() != "linux":
        return None
    too_late = "mlx.core" in sys.modules
    loaded = next(filter(_load, _candidates()), None)
    if loaded is None:
        warnings.warn(f"no fast BLAS found, MLX will be slow; {_REMEDY}", SlowBlasWarning, 2)
        return None
    if too_late:
        message = (
            "mlx was imported before sgl_mlx, so it keeps the reference BLAS of its wheel: "
            f"float32 matrix products on the CPU are about 20 times slower than with {loaded}; "
            "import sgl_mlx before mlx"
        )
        warnings.warn(message, SlowBlasWarning, stacklevel=2)
    return Blas(loaded, too_late)


def _candidates() -> Iterator[str]:
    if named := os.environ.get("SGL_MLX_BLAS"):
        yield named
    yield from map(str, sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")))
    yield from _SYSTEM_NAMES


def _load(library: str) -> bool:
    """Make the library's symbols global; warn if the one named in `SGL_MLX_BLAS` does not load."""
    import ctypes  # deferred: importing sgl_mlx without mlx needs none of it

    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as e:
        if library == os.environ.get("SGL_MLX_BLAS"):
            warnings.warn(f"SGL_MLX_BLAS={library}: {e}", SlowBlasWarning, stacklevel=2)
        return False
    return True
