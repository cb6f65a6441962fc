"""Measurements of `sgl-mlx doctor --report`: kernel self-test, kernel tuning, engine speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sgl_mlx import machine
from sgl_mlx.benchmarks.micro.engine import EngineBench
from sgl_mlx.cli.engine import EngineOptions, fetch_model
from sgl_mlx.errors import SglError
from sgl_mlx.metal_kernels import build, model_heads
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.metal_kernels.tune import Sweep, Tuning
from sgl_mlx.runtime.engine import Engine

Say = Callable[[str], None]
"""A function that shows the progress of a measurement in one line."""

SELF_TEST, TUNING, SPEED = "Self-test of the kernels", "Tuning", "Engine against mlx-lm"
NO_METAL = "not run: there is no Metal here"


@dataclass(frozen=True)
class Section:
    """A section of the file of `--report`: a sentence, a table, and `facts` for its JSON form."""

    title: str
    summary: str
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def guarded(title: str, measure: Callable[[], Section]) -> Section:
    """Run `measure` and return its section.

    An `SglError`, RuntimeError, ValueError or OSError becomes a section titled `title`.
    """
    try:
        return measure()
    except (SglError, RuntimeError, ValueError, OSError) as error:
        return Section(title, f"failed: {error}", facts={"error": str(error)})


def self_test(say: Say) -> Section:
    """Compare every specialisation of the Metal kernels with plain MLX.

    Without Metal, nothing is tested.
    """
    if not machine.has_metal():
        return Section(SELF_TEST, NO_METAL)
    trusted, cases, rows = TestedKernels(build.Kernels()), model_heads.all_cases(), []
    for number, case in enumerate(cases, 1):
        say(f"self-test {number} of {len(cases)}: {case}")
        verdict = trusted.verdict(case)
        rows.append(("ok" if verdict.good else "FAIL", str(case), verdict.seen))
    good = sum(mark == "ok" for mark, *_ in rows)
    summary = f"{good} of {len(rows)} specialisations agree with plain MLX."
    return Section(
        SELF_TEST, summary, ("", "case", "seen"), tuple(rows), {"good": good, "tested": len(rows)}
    )


def tuning(say: Say) -> Section:
    """Measure from which sizes on the Metal kernels beat MLX's attention, and save these sizes.

    Without Metal, nothing is measured.
    """
    if not machine.has_metal():
        return Section(TUNING, NO_METAL)
    kept, rows = Tuning(), []
    for number, name in enumerate(model_heads.MODELS, 1):
        say(f"tuning {number} of {len(model_heads.MODELS)}: {name}")
        case = next(model_heads.cases(name))
        found = Sweep(case, build.Kernels()).run()
        kept.save(case, found)
        rows.append((name, str(found)))
    summary = f"Cut-overs of {len(rows)} models' heads, kept for their next start."
    return Section(TUNING, summary, ("heads", "cut-overs"), tuple(rows), dict(rows))


def speed(model: str | None, seconds: float, say: Say) -> Section:
    """Compare the speed of the engine with that of mlx-lm on a model.

    The model is downloaded if necessary. After `seconds`, no further row of the table is measured.
    """
    fetch_model(model)
    say("loading the model")
    with Engine(**asdict(EngineOptions(model))) as engine:
        started, pairs = time.monotonic(), []
        bench = EngineBench(engine, repeats=1, scale=0.5)
        say("engine against mlx-lm: prefill")
        for pair in bench.pairs():
            pairs.append(pair)
            say(f"engine against mlx-lm: {pair.name}: {pair.ratio:.2f}x")
            if time.monotonic() - started > seconds:
                break
        name = engine.model_name
    rows = tuple(
        (p.name, f"{max(p.ours):.1f}", f"{max(p.theirs):.1f}", p.unit, f"{p.ratio:.2f}x")
        for p in pairs
    )
    return Section(
        SPEED,
        f"{name}, one pair per row, both in one process; other programs may have run beside it.",
        ("row", "ours", "mlx-lm", "unit", "ratio"),
        rows,
        {"model": name, "rows": [pair.to_dict() for pair in pairs]},
    )
