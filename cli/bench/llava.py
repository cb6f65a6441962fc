"""`sgl-mlx bench llava`: speed of questions about pictures, with and without picture caches."""

from __future__ import annotations

import resource
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx import machine
from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option, tower_option

if TYPE_CHECKING:
    from pathlib import Path

    from sgl_mlx.benchmarks.micro.llava import Run


@click.command()
@engine_options
@tower_option("clip-l-336")
@click.option(
    "--images",
    type=click.IntRange(1, 24),
    default=24,
    show_default=True,
    help="Use this many pictures; all 24 have 60 questions.",
)
@click.option("--new-tokens", default=32, show_default=True, help="Tokens of each answer.")
@json_option
def llava(options: EngineOptions, tower: str, images: int, new_tokens: int, as_json: bool) -> None:
    """Compare the speed of questions about pictures, with the picture caches on and off.

    A GGUF language model without --mmproj gets a randomly initialised vision tower, with which the
    times are right but the answers are meaningless. Prints a table and ends with one JSON line.
    """
    from contextlib import ExitStack
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from sgl_mlx.benchmarks.micro.llava import WITHOUT, LlavaBench
    from sgl_mlx.runtime.engine import Engine

    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        chosen = _with_tower(options.without_drafts(), tower, folder)
        ours = stack.enter_context(Engine(**chosen))
        theirs = stack.enter_context(Engine(**{**chosen, **WITHOUT}))
        measured = LlavaBench(ours, theirs, folder, images, new_tokens)
        with_caches, without = measured.runs()
        pair = measured.pair(with_caches, without)
    peak = _peak_memory_mb()
    if not as_json:
        caption = f"both engines took {peak:,} MB at most"
        print_pairs("LLaVA-Bench's shape", [pair], caption, ("with caches", "without"))
        _print_phases(with_caches, without)
    runs = {"with": with_caches.to_dict(), "without": without.to_dict()}
    print_document([pair], **runs, peak_memory_mb=peak)


def _with_tower(options: EngineOptions, tower: str, folder: Path) -> dict[str, Any]:
    """Return the engine's options; a GGUF model without `mmproj` gets a random vision tower.

    Args:
        tower: architecture of the random tower.
        folder: folder to which the random tower is written.

    Raises:
        click.UsageError: `tower` is not the name of a known architecture.
    """
    from sgl_mlx.benchmarks.micro.random_tower import TOWERS, write_tower
    from sgl_mlx.models.gguf.config import read_config
    from sgl_mlx.models.gguf.file import GGUFFile
    from sgl_mlx.models.resolve import resolve

    if tower not in TOWERS:
        raise click.UsageError(f"--tower {tower}: known are {', '.join(TOWERS)}")
    chosen = asdict(options)
    _, language = resolve(options.model_path)
    if options.mmproj is None and language.is_file():
        write_tower(folder, tower, read_config(GGUFFile(language))["hidden_size"])
        chosen["mmproj"] = str(folder)
    return chosen


def _peak_memory_mb() -> int:
    """Return the peak memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if machine.on_mac() else 1 << 10))


def _print_phases(ours: Run, theirs: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds by phase", caption="files are opened while the model runs")
    for heading in ("phase", "with caches", "without"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for name in vars(ours.phases):
        table.add_row(name, *(f"{getattr(run.phases, name):.2f}" for run in (ours, theirs)))
    table.add_row("pictures encoded", str(ours.encoded), str(theirs.encoded))
    table.add_row("prompt tokens from the cache", f"{ours.hit_rate:.1%}", f"{theirs.hit_rate:.1%}")
    table.add_row("could be at most", f"{ours.best_hit_rate:.1%}", f"{theirs.best_hit_rate:.1%}")
    Console().print(table)
