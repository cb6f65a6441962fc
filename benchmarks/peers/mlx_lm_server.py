"""Program that loads the fast BLAS that our engine uses on Linux, then runs mlx-lm's server."""

from __future__ import annotations

from sgl_mlx.blas import load_fast_blas


def main() -> None:
    load_fast_blas()
    from mlx_lm.server import main as serve  # imports mlx, which must come after the BLAS

    serve()


if __name__ == "__main__":
    main()
