"""`sgl-mlx bench kernels`: modelled times of the attention kernels on an Apple chip."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.options import chip_option, json_option

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.modelled.kernel_model import Modelled


@click.command()
@chip_option
@click.option(
    "--plot", type=click.Path(dir_okay=False), help="Also write a plot (.svg, .png, .pdf)."
)
@json_option
def kernels(chip: str, plot: str | None, as_json: bool) -> None:
    """Estimate the times of our attention kernels and of MLX's attention on an Apple chip.

    MLX's attention needs its keys gathered first. Nothing is run: the times follow from exact
    operation counts, the chip's published figures and stated assumptions. Ends with one JSON line.
    """
    from sgl_mlx.benchmarks.modelled import kernel_model as km

    if chip not in km.CHIPS:
        raise click.BadParameter(f"{chip!r} is not one of {', '.join(km.CHIPS)}", param_hint="chip")
    rows = km.model(km.CHIPS[chip])
    if plot:
        km.plot(rows, plot)
    if not as_json:
        _print(rows)
    click.echo(json.dumps({"modelled": True, "rows": [row.to_dict() for row in rows]}))


def _print(rows: list[Modelled]) -> None:
    for row in rows:
        click.echo(
            f"modelled {row.chip.name}  {row.case!s:<60} ours {row.ours:>9.0f} us  "
            f"gather {row.gathered:>9.0f} us  {row.ratio:>6.2f}x"
        )
