"""`sgl-mlx bench`: what the figures in the README are made with."""

from __future__ import annotations

import json
import platform
import resource
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.bench_loc import lines_of_code
from sgl_mlx.cli.bench_project import project_chip
from sgl_mlx.cli.bench_suite import suite
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.kernel_model import kernel_model

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.benchmarks.micro.llava import Run
    from sgl_mlx.benchmarks.micro.pairs import Pair


@click.group()
def bench() -> None:
    """Measure on this machine, as pairs in one run."""


@bench.command()
@engine_options
@click.option("--repeats", default=3, show_default=True, help="Pairs measured for each row.")
@click.option("--scale", default=1.0, show_default=True, help="Multiplies the generated tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def engine(options: EngineOptions, repeats: int, scale: float, as_json: bool) -> None:
    """The engine against mlx-lm's generators on the same weights.

    Prints a table and ends with one JSON line.
    """
    from rich.console import Console

    from sgl_mlx.benchmarks.micro.engine import EngineBench
    from sgl_mlx.runtime.engine import Engine

    console = Console(stderr=True)
    with Engine(**asdict(options)) as running:
        run = EngineBench(running, repeats, scale)
        pairs = []
        for pair in run.pairs():
            pairs.append(pair)
            console.print(f"{pair.name}: {pair.ratio:.2f}x (bar {pair.bar}x)", highlight=False)
        overhead = run.overhead()
    if not as_json:
        caption = f"tree + scheduler: {overhead:.2%}"
        Console().print(_table("engine against mlx-lm", pairs, caption, ("ours", "mlx-lm")))
    document = {
        "rows": [pair.to_dict() for pair in pairs],
        "overhead_share": round(overhead, 5),
    }
    click.echo(json.dumps(document | _machine()))


@bench.command()
@engine_options
@click.option("--repeats", default=3, show_default=True, help="Pairs measured for each row.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def constrained(options: EngineOptions, repeats: int, as_json: bool) -> None:
    """A JSON record of twelve fields by regex against free text of the same length.

    Prints a table and ends with one JSON line.
    """
    from rich.console import Console

    from sgl_mlx.benchmarks.micro.constrained import ConstrainedBench
    from sgl_mlx.runtime.engine import Engine

    with Engine(**asdict(options)) as running:
        run = ConstrainedBench(running, repeats)
        pairs = [run.pair(1), run.pair(8)]
        shares = run.shares()
    if not as_json:
        notes = f"forced tokens: {shares.forced:.0%}; masks: {shares.masks:.2%} of model time"
        Console().print(_table("constrained against free", pairs, notes, ("grammar", "free")))
    rows = [pair.to_dict() for pair in pairs]
    document = {"rows": rows, "forced_share": shares.forced, "mask_share": shares.masks}
    click.echo(json.dumps(document | _machine()))


@bench.command("compiler")
@click.option("--programs", default=1000, show_default=True, help="Programs in a batch.")
@click.option("--repeats", default=9, show_default=True, help="Pairs measured for each row.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def compiler_overhead(programs: int, repeats: int, as_json: bool) -> None:
    """Short programs a second, compiled against interpreted, without a model.

    Prints a table and ends with one JSON line.
    """
    from rich.console import Console

    from sgl_mlx.benchmarks.micro.compiler import overhead

    pairs = overhead(programs, repeats)
    if not as_json:
        sides = ("compiled", "interpreted")
        Console().print(_table("programs without a model", pairs, "one thread", sides))
    click.echo(json.dumps({"rows": [pair.to_dict() for pair in pairs]} | _machine()))


bench.add_command(kernel_model)
bench.add_command(suite)
bench.add_command(lines_of_code)
bench.add_command(project_chip)


@bench.command()
@engine_options
@click.option("--prefix", default=4000, show_default=True, help="Tokens of the evicted prefix.")
@click.option("--repeats", default=2, show_default=True, help="Pairs measured for each row.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def prefetch(options: EngineOptions, prefix: int, repeats: int, as_json: bool) -> None:
    """The first token after an evicted prefix, with a disk cache against without.

    Prints a table and ends with one JSON line.
    """
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from sgl_mlx.benchmarks.micro.prefetch import PrefetchBench
    from sgl_mlx.benchmarks.micro.prefetch_program import compare
    from sgl_mlx.runtime.engine import Engine

    size = {**asdict(options), "max_total_tokens": PrefetchBench.slots(prefix)}
    with (
        TemporaryDirectory() as folder,
        Engine(**{**size, "disk_cache_dir": options.disk_cache_dir or folder}) as ours,
        Engine(**{**size, "disk_cache_dir": None}) as theirs,
    ):
        requests = PrefetchBench(ours, theirs, prefix, repeats=repeats)
        pairs = [*requests.pairs(), compare(ours, theirs, requests.text, repeats)]
        stats = ours.get_server_info()["stats"]
    if not as_json:
        caption = f"{stats['restored_tokens']} tokens restored"
        sides = ("disk cache", "without")
        Console().print(_table("first token after an eviction", pairs, caption, sides))
    document = {"rows": [pair.to_dict() for pair in pairs], "stats": stats}
    click.echo(json.dumps(document | _machine()))


@bench.command()
@engine_options
@click.option("--tower", default="clip-l-336", show_default=True, help="Shape of random weights.")
@click.option(
    "--images",
    type=click.IntRange(1, 24),
    default=24,
    show_default=True,
    help="Pictures; all 24 have 60 questions.",
)
@click.option("--new-tokens", default=32, show_default=True, help="Tokens of each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def llava(options: EngineOptions, tower: str, images: int, new_tokens: int, as_json: bool) -> None:
    """Questions about pictures, with the caches for pictures against without.

    A vision tower with random weights is put before a GGUF language model, unless --mmproj names
    one: what it sees means nothing, how long it takes does. Prints a table and ends with one JSON
    line.
    """
    from contextlib import ExitStack
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from sgl_mlx.benchmarks.micro.llava import WITHOUT, LlavaBench
    from sgl_mlx.benchmarks.micro.random_tower import TOWERS, write_tower
    from sgl_mlx.models.gguf.config import read_config
    from sgl_mlx.models.gguf.file import GGUFFile
    from sgl_mlx.models.resolve import resolve
    from sgl_mlx.runtime.engine import Engine

    if tower not in TOWERS:
        raise click.UsageError(f"--tower {tower}: known are {', '.join(TOWERS)}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        chosen = asdict(options)
        _, language = resolve(options.model_path)
        if options.mmproj is None and language.is_file():
            write_tower(folder, tower, read_config(GGUFFile(language))["hidden_size"])
            chosen["mmproj"] = str(folder)
        ours = stack.enter_context(Engine(**chosen))
        theirs = stack.enter_context(Engine(**{**chosen, **WITHOUT}))
        measured = LlavaBench(ours, theirs, folder, images, new_tokens)
        runs = measured.runs()
        pair = measured.pair(*runs)
    peak = _peak_memory_mb()
    if not as_json:
        caption = f"both engines took {peak:,} MB at most"
        Console().print(_table("LLaVA-Bench's shape", [pair], caption, ("with caches", "without")))
        Console().print(_phases(*runs))
    document = {
        "rows": [pair.to_dict()],
        "with": runs[0].to_dict(),
        "without": runs[1].to_dict(),
        "peak_memory_mb": peak,
    }
    click.echo(json.dumps(document | _machine()))


def _peak_memory_mb() -> int:
    """Of this process; Linux counts in kilobytes, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10))


def _phases(ours: Run, theirs: Run) -> Table:
    from rich.table import Table

    table = Table(title="seconds by phase", caption="files are opened while the model runs")
    for heading in ("phase", "with caches", "without"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for name in vars(ours.phases):
        table.add_row(name, *(f"{getattr(run.phases, name):.2f}" for run in (ours, theirs)))
    table.add_row("pictures encoded", str(ours.encoded), str(theirs.encoded))
    table.add_row("prompt tokens from the cache", f"{ours.hit_rate:.1%}", f"{theirs.hit_rate:.1%}")
    table.add_row("could be at most", f"{ours.best_hit_rate:.1%}", f"{theirs.best_hit_rate:.1%}")
    return table


def _figure(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2f}"


def _machine() -> dict[str, str]:
    return {"machine": platform.machine(), "system": platform.system()}


def _table(title: str, pairs: list[Pair], caption: str, sides: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for heading in ("row", *sides, "unit", "ratio", "bar", ""):
        table.add_column(heading, justify="left" if heading in ("row", "unit") else "right")
    for pair in pairs:
        table.add_row(
            pair.name,
            _figure(max(pair.ours)),
            _figure(max(pair.theirs)),
            pair.unit,
            f"{pair.ratio:.2f}x",
            f"{pair.bar}x",
            "holds" if pair.holds else "missed",
        )
    return table
