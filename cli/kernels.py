"""`sgl-mlx kernels`: list, test, tune and build the Metal and CPU kernels of this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from sgl_mlx.metal_kernels.build import Kernels
    from sgl_mlx.metal_kernels.selftest import Case

MODELS = (
    "smollm2-135m, llama-3-8b, qwen3-4b, gemma-2-9b, gemma-3-4b, gemma-4-e2b, llava-1.5-7b, "
    "gpt-oss-20b, mimo-v2-flash, deepseek-v2-lite"
)


@click.group()
def kernels() -> None:
    """List, test and tune the Metal kernels; compile the CPU kernels of Linux.

    SGL_MLX_KERNELS=off|auto|force says whether models use the kernels. With auto, the default, a
    Metal kernel is used where it is faster than MLX, if it agreed with plain MLX in a test. The CPU
    kernels are used if they are compiled.
    """


@kernels.command("list")
@json_option
def list_kernels(as_json: bool) -> None:
    """List the kernels, the rules that choose between them, their tuning and their verdicts."""
    from sgl_mlx.cpu_kernels.build import why_not
    from sgl_mlx.metal_kernels.build import SPECS
    from sgl_mlx.metal_kernels.dispatch import RULES
    from sgl_mlx.metal_kernels.mode import VARIABLE, mode
    from sgl_mlx.metal_kernels.records import machine
    from sgl_mlx.metal_kernels.verdicts import kept_verdicts

    facts: dict[str, Any] = {
        "metal": _metal(),
        "cpu": why_not() or "compiled",
        VARIABLE: mode(),
        **machine(),
        "sources": {name: len(spec.source.splitlines()) for name, spec in SPECS.items()},
        "rules": [{"path": rule.path.value, "when": rule.when} for rule in RULES],
        "cut_overs": _kept_cut_overs(),
        "verdicts": [verdict._asdict() for verdict in kept_verdicts()],
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
    kept, verdicts = facts.pop("cut_overs"), facts.pop("verdicts")
    for name, fact in facts.items():
        click.echo(f"{name:<18} {fact}")
    click.echo()
    for model, cut in kept.items():
        click.echo(f"{model:<18} {cut or 'not tuned: the defaults hold'}")
    if verdicts:
        click.echo()
    for verdict in verdicts:
        _show(verdict)


@kernels.command()
@click.option("--without-amx", is_flag=True, help="Leave the processor's matrix unit (AMX) out.")
@json_option
def build(without_amx: bool, as_json: bool) -> None:
    """Compile the CPU kernels for this machine's processor; Linux only.

    Needs a C++ compiler and takes some 20 seconds. The result is kept in a cache. Every model uses
    it until the kernels are built again with the other choice of --without-amx.
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

    The verdicts are kept, and models use them from their next start on. Ends with code 1 if a
    kernel is wrong. A log has the full messages, such as the compiler's; without --json, its path
    is printed.
    """
    from sgl_mlx.metal_kernels import model_heads
    from sgl_mlx.metal_kernels.tested import TestedKernels
    from sgl_mlx.metal_kernels.verdicts import VerdictFile

    file = VerdictFile()
    tested = TestedKernels(_kernels(), file)
    cases = model_heads.all_cases() if model is None else list(model_heads.cases(_known(model)))
    rows = []
    for case in cases:
        verdict = tested.verdict(case)
        rows.append(verdict._asdict())
        if not as_json:
            _show(rows[-1])
    wrong = sum(not row["good"] for row in rows)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(f"{len(rows) - wrong} of {len(rows)} specialisations agree with plain MLX")
        if wrong:
            click.echo(f"details: {file.log}")
    ctx.exit(wrong > 0)


@kernels.command()
@click.option("--model", help=f"Only the heads of one model: {MODELS}.")
@json_option
def tune(model: str | None, as_json: bool) -> None:
    """Measure from which sizes on our kernels beat MLX's attention; needs Metal.

    The sizes are saved. Models with the tuned attention heads use them from their next start on.
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


def _show(verdict: dict[str, Any]) -> None:
    good, seen = verdict["good"], verdict["seen"].partition("\n")[0]
    mark = click.style("ok  " if good else "FAIL", fg="green" if good else "red")
    click.echo(f"{mark} {verdict['case']}: {seen}")


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
