"""Self-check: programs are answered alike however they are run; see `docs/selfcheck.md`."""

from __future__ import annotations

from typing import Any

from sgl_mlx.selfcheck.statements import (
    Ask,
    Choose,
    Fork,
    Program,
    Say,
    Show,
    Turn,
    noise,
)

__all__ = ["Ask", "Choose", "Fork", "Program", "Say", "Show", "Turn", "noise", "reproduce"]


def reproduce(way: str, *rounds: Any, model: str | None = None, **options: Any) -> None:
    """Run programs alone and in another way, and compare the answers.

    Args:
        way: name of the other way to run them, from the table that `sgl-mlx selfcheck` prints.
        rounds: programs that run at once, round after round: lists of `Program`, or of pairs of a
            function of the state `s` and the sampling parameters of its `run`.
        model: path or name of the model.
        options: options of the engines.

    Raises:
        DifferenceFound: the answers differ.
    """
    from sgl_mlx.blas import load_fast_blas

    load_fast_blas()  # before mlx is imported, or it would have no effect
    from sgl_mlx.selfcheck.check import reproduce_on
    from sgl_mlx.selfcheck.open import open_engines
    from sgl_mlx.selfcheck.ways import way_named

    with open_engines(model, options) as engines:
        reproduce_on(engines, way_named(way), rounds)
