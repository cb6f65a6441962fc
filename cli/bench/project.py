"""`sgl-mlx bench project`: modelled times of the benchmark suite on an Apple chip."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.options import chip_option, json_option, scale_option

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.modelled.projection import Projected


@click.command()
@chip_option
@click.option(
    "--model", default="llama-2-7b", show_default=True, help="llama-2-7b or llava-1.5-7b."
)
@click.option("--quant", default="f16", show_default=True, help="Weights: f16 or q4_0.")
@click.option("--concurrency", type=click.IntRange(1), help="Run this many programs at a time.")
@click.option("--workload", "names", multiple=True, help="Model only this workload; repeatable.")
@click.option(
    "--single-stream", is_flag=True, help="Instead, model one row of an 8B model against mlx-lm."
)
@click.option(
    "--macs",
    type=click.IntRange(2),
    help="Instead, model steps of one model over this many Macs: bytes, links and times.",
)
@scale_option(1.0, "Size of the workloads; 1 is the paper's.")
@json_option
def project(
    chip: str,
    model: str,
    quant: str,
    concurrency: int | None,
    names: tuple[str, ...],
    single_stream: bool,
    macs: int | None,
    scale: float,
    as_json: bool,
) -> None:
    """Estimate the suite's times on an Apple chip, for our engine and llama-server.

    No model runs: times follow from exact counts of tokens, published speeds and assumptions,
    which are printed first. Ends with one JSON line.
    """
    if single_stream:
        _one_row(chip, as_json)
        return
    if macs is not None:
        _over_macs(chip, model, quant, macs, as_json)
        return
    from sgl_mlx.benchmarks.modelled import projection
    from sgl_mlx.benchmarks.modelled.apple import Machine
    from sgl_mlx.benchmarks.suite.workloads.catalogue import find
    from sgl_mlx.benchmarks.suite.workloads.workload import Size

    machine = Machine.find(chip, model, quant)
    workloads = projection.fitting(machine.model, find(names))
    if not workloads:
        raise click.UsageError(f"{model} runs none of {', '.join(names)}")
    assumed = projection.assumptions(machine, concurrency)

    def say(line: str) -> None:
        if not as_json:
            click.echo(f"modelled {line}")

    for line in assumed:
        say(f"assuming {line}")
    rows = []
    with TemporaryDirectory() as folder:
        size = Size(scale, Path(folder))
        for row in projection.project(machine, workloads, size, concurrency):
            rows.append(row)
            say(_line(row))
    mean = projection.geometric_mean(rows)
    say(f"{chip} {model} {quant}  geometric mean {mean:.2f}x")
    document = {
        "modelled": True,
        "chip": chip,
        "model": model,
        "quant": quant,
        "geomean": round(mean, 3),
        "assumptions": assumed,
        "rows": [row.to_dict() for row in rows],
    }
    click.echo(json.dumps(document))


def _one_row(chip: str, as_json: bool) -> None:
    from sgl_mlx.benchmarks.modelled.kernel_model import CHIPS
    from sgl_mlx.benchmarks.modelled.single_stream import assumptions, streams

    if chip not in CHIPS:
        raise click.BadParameter(f"{chip!r} is not one of {', '.join(CHIPS)}", param_hint="chip")
    rows, assumed = list(streams(CHIPS[chip])), assumptions(CHIPS[chip])
    if not as_json:
        for line in assumed:
            click.echo(f"modelled assuming {line}")
        for row in rows:
            click.echo(
                f"modelled {chip} {row.context:>6} tokens before: ours {row.ours:.2f} ms per "
                f"token, mlx-lm {row.mlx_lm:.2f}: {row.slower:+.1%} (at most {row.bar:+.0%})"
            )
    document = {"modelled": True, "chip": chip, "assumptions": assumed}
    click.echo(json.dumps({**document, "rows": [row.to_dict() for row in rows]}))


def _over_macs(chip: str, model: str, quant: str, macs: int, as_json: bool) -> None:
    from sgl_mlx.benchmarks.modelled.apple import Machine
    from sgl_mlx.benchmarks.modelled.many_macs import assumptions, steps

    rows, assumed = list(steps(Machine.find(chip, model, quant), macs)), assumptions(macs)
    if not as_json:
        for line in assumed:
            click.echo(f"modelled assuming {line}")
        for row in rows:
            click.echo(f"modelled {macs} x {chip} {model} {quant} {row}")
    document = {"modelled": True, "chip": chip, "model": model, "quant": quant, "macs": macs}
    told = {"assumptions": assumed, "rows": [row.to_dict() for row in rows]}
    click.echo(json.dumps({**document, **told}))


def _line(row: Projected) -> str:
    counts = row.counts
    return (
        f"{row.machine.chip.name} {row.name:<22} {counts.calls:>5} calls  "
        f"{counts.prompt_tokens:>8} prompt tokens: ours {counts.ours.prefilled:>7}, "
        f"llama-server {counts.slots.prefilled:>7}; {counts.output_tokens:>6} output; "
        f"ours {row.ours:>7.1f} s, llama-server {row.llama_server:>7.1f} s  {row.ratio:>5.2f}x"
    )
