"""Loading of a fast BLAS for MLX's CPU back end on Linux.

The Linux wheel of MLX is linked against the reference BLAS, some twenty times slower than OpenBLAS
or MKL. A BLAS that is loaded globally *before* MLX takes the place of the wheel's BLAS. Therefore
`import sgl_mlx` puts an import finder on `sys.meta_path`, which loads a fast BLAS just before the
first import of `mlx.core`, whichever code imports it. A process that never imports mlx loads no
BLAS. On systems other than Linux this module does nothing.

If mlx was imported before sgl_mlx, everything works, but products of float32 matrices stay slow.
`load_fast_blas` then warns when a model is loaded for the CPU.
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
    """Warning that MLX will multiply matrices slowly.

    Also given if the library named by the environment variable `SGL_MLX_BLAS` does not load.
    """


@dataclass(frozen=True)
class Blas:
    """A BLAS library that was loaded.

    Attributes:
        library: the name or path that it was loaded by.
        too_late: True if MLX was imported before the library was loaded. The library then has no
            effect on MLX.
    """

    library: str
    too_late: bool = False


class BlasBeforeMlx:
    """An import finder that finds no module, but loads a fast BLAS before `mlx.core`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Load a fast BLAS if `name` is `mlx.core`; return None, so the next finder is asked."""
        if name == "mlx.core":
            load_fast_blas()


def load_fast_blas_before_mlx() -> None:
    """Install `BlasBeforeMlx` on Linux: it calls `load_fast_blas` before `mlx.core` is imported."""
    if machine.system() == "linux" and not any(isinstance(f, BlasBeforeMlx) for f in sys.meta_path):
        sys.meta_path.insert(0, BlasBeforeMlx())


@cache
def load_fast_blas() -> Blas | None:
    """Load a fast BLAS on Linux: the first library that loads.

    The library named by the environment variable `SGL_MLX_BLAS` is tried first, then MKL, then
    OpenBLAS. Later calls return the result of the first call.

    Returns:
        The loaded library; None if no library was found, or on other systems than Linux.

    Warns:
        SlowBlasWarning: no library was found, the library in `SGL_MLX_BLAS` does not load, or MLX
            was imported before the library was loaded. The message says what to do.
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
    """Load a library globally and return whether it loaded.

    Warn if the library does not load and `SGL_MLX_BLAS` names it.
    """
    import ctypes  # deferred: programs that never import mlx do not need it

    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as e:
        if library == os.environ.get("SGL_MLX_BLAS"):
            warnings.warn(f"SGL_MLX_BLAS={library}: {e}", SlowBlasWarning, stacklevel=2)
        return False
    return True
