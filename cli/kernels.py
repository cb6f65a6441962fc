"""`sgl-mlx kernels`: the kernels on this machine: Metal on a Mac, the CPU on Linux."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from sgl_mlx.metal_kernels.build import Kernels
    from sgl_mlx.metal_kernels.selftest import Case

MODELS = "smollm2-135m, llama-3-8b, qwen3-4b, gemma-2-9b, gemma-3-4b, llava-1.5-7b, gpt-oss-20b"


@click.group()
def kernels() -> None:
    """List, test and tune the Metal kernels; compile those for Linux.

    SGL_MLX_KERNELS=off|auto|force says whether models use them; auto is the default: on Metal,
    each once it agreed with plain MLX, on Linux once they were compiled.
    """


@kernels.command("list")
@json_option
def list_kernels(as_json: bool) -> None:
    """List the kernels, the rules that choose between them, and their tuning."""
    from sgl_mlx.cpu_kernels.build import why_not
    from sgl_mlx.metal_kernels.build import SPECS
    from sgl_mlx.metal_kernels.dispatch import RULES
    from sgl_mlx.metal_kernels.mode import VARIABLE, mode
    from sgl_mlx.metal_kernels.tune import machine

    facts: dict[str, Any] = {
        "metal": _metal(),
        "cpu": why_not() or "compiled",
        VARIABLE: mode(),
        **machine(),
        "sources": {name: len(spec.source.splitlines()) for name, spec in SPECS.items()},
        "rules": [{"path": rule.path.value, "when": rule.when} for rule in RULES],
        "cut_overs": _kept_cut_overs(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, lines in facts.pop("sources").items():
        click.echo(f"{name:<18} {lines} lines")
    click.echo()
    for rule in facts.pop("rules"):
        click.echo(f"{rule['path']:<24} {rule['when']}")
    click.echo()
    kept = facts.pop("cut_overs")
    for name, fact in facts.items():
        click.echo(f"{name:<18} {fact}")
    click.echo()
    for model, cut in kept.items():
        click.echo(f"{model:<18} {cut or 'not tuned: the defaults hold'}")


@kernels.command()
@click.option("--without-amx", is_flag=True, help="Leave the processor's matrix unit (AMX) out.")
@json_option
def build(without_amx: bool, as_json: bool) -> None:
    """Compile the CPU kernels for this machine's processor; Linux only.

    Takes a C++ compiler and some 20 seconds. The result is kept in a cache and used by every model
    until the kernels are built again with or without AMX.
    """
    from rich.console import Console

    from sgl_mlx.cpu_kernels.build import compile_kernels, compiled_for, load

    console = Console(stderr=True)
    with console.status("compiling ..."):
        library = compile_kernels(amx=not without_amx)
    found = load()
    facts = {
        "library": str(library),
        "tiles": found is not None and found.multiplies_tiles(),
        "instruction_sets": compiled_for(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(library)


@kernels.command()
@click.option("--model", help=f"Only the heads of one model: {MODELS}.")
@json_option
@click.pass_context
def selftest(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """Compile every specialisation and compare it with plain MLX; needs Metal.

    Ends with code 1 when one of them is wrong.
    """
    from sgl_mlx.metal_kernels import model_heads
    from sgl_mlx.metal_kernels.fallback import KernelsWithFallback

    trusted = KernelsWithFallback(_kernels())
    cases = model_heads.all_cases() if model is None else list(model_heads.cases(_known(model)))
    rows = []
    for case in cases:
        verdict = trusted.verdict(case)
        rows.append({"case": str(case), "good": verdict.good, "seen": verdict.seen})
        if not as_json:
            mark = click.style("ok  " if verdict.good else "FAIL", fg=_color(verdict.good))
            click.echo(f"{mark} {case}: {verdict.seen}")
    wrong = sum(not row["good"] for row in rows)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(f"{len(rows) - wrong} of {len(rows)} specialisations agree with plain MLX")
    ctx.exit(wrong > 0)


@kernels.command()
@click.option("--model", help=f"Only the heads of one model: {MODELS}.")
@json_option
def tune(model: str | None, as_json: bool) -> None:
    """Measure where our kernels beat gather + MLX's own, and save it; needs Metal.

    Models whose heads were tuned take the new figures at their next start.
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import track

    from sgl_mlx.metal_kernels import model_heads
    from sgl_mlx.metal_kernels.tune import Sweep, Tuning

    made, tuning = _kernels(), Tuning()
    names = list(model_heads.MODELS) if model is None else [_known(model)]
    found = {}
    console = Console(stderr=True)
    for name in track(names, "tuning", console=console, disable=not console.is_terminal):
        case = next(model_heads.cases(name))
        found[name] = Sweep(case, made).run()
        tuning.save(case, found[name])
    if as_json:
        click.echo(json.dumps({name: asdict(cut) for name, cut in found.items()}, indent=2))
        return
    for name, cut in found.items():
        click.echo(f"{name:<14} {cut}")


def _kernels() -> Kernels:
    from sgl_mlx.errors import KernelError
    from sgl_mlx.metal_kernels.build import Kernels

    if not _metal():
        raise KernelError(
            "there is no Metal here, so the kernels cannot run; the tests run them in an "
            "emulator (make test-kernels)"
        )
    return Kernels()


def _known(model: str) -> str:
    from sgl_mlx.metal_kernels import model_heads

    if model not in model_heads.MODELS:
        raise click.BadParameter(f"{model!r} is not one of {MODELS}", param_hint="--model")
    return model


def _kept_cut_overs() -> dict[str, str | None]:
    from sgl_mlx.metal_kernels import model_heads
    from sgl_mlx.metal_kernels.tune import Tuning

    def kept(case: Case) -> str | None:
        cut = Tuning().load(case)
        return None if cut is None else str(cut)

    return {name: kept(next(model_heads.cases(name))) for name in model_heads.MODELS}


def _metal() -> bool:
    import mlx.core as mx

    return mx.metal.is_available()


def _color(good: bool) -> str:
    return "green" if good else "red"
