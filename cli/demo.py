"""`sgl-mlx demo`: runs two short programs; shows how many prompt tokens the cache held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "computed_tokens": "computed",
    "decode_tokens": "generated",
    "forward_passes": "passes",
}
SECONDS = {"model_seconds": "model", "schedule_seconds": "scheduler", "tree_seconds": "radix tree"}


@click.command()
@engine_options
def demo(options: EngineOptions) -> None:
    """Run two short programs and show how many prompt tokens came from the cache."""
    from rich.console import Console

    from sgl_mlx.cli.demo_programs import CITIES, REVIEWS, day_out, judge_review

    before: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    with open_engine(options) as engine:

        def account(title: str) -> None:
            nonlocal before
            now = output.stats_of(engine)
            rows[title] = {key: now.get(key, 0) - before.get(key, 0) for key in COLUMNS}
            before = now

        click.echo(f"{engine.model_name}: a day out, as three branches over one prefix\n")
        for city in CITIES:
            state = day_out.run(city, backend=engine, temperature=0)
            _show(city, f"{state.messages()[2]['content']} Best: the {state['best']}.")
            account(f"a day in {city}")

        click.echo("\na batch of reviews, each judged by one choice\n")
        batch = [{"review": review} for review in REVIEWS]
        for row, state in zip(batch, judge_review.run_batch(batch, backend=engine), strict=True):
            _show(state["verdict"], row["review"])
        account(f"{len(REVIEWS)} reviews")
    click.echo()
    Console().print(_table(rows))
    times = (f"{label} {before.get(key, 0):.3f} s" for key, label in SECONDS.items())
    click.echo("time: " + ", ".join(times))
    click.echo(
        "cached: prompt tokens whose keys and values the radix tree held or another branch was\n"
        "just computing. No program asked for it. Next: sgl-mlx chat, sgl-mlx run --help"
    )


def _show(label: str, text: str) -> None:
    click.echo(f"  {label}: {text}")


def _table(rows: Mapping[str, Mapping[str, int]]) -> Table:
    """Return a table with one row for each program, and a row of totals."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("tokens of", footer="together")
    for key, head in COLUMNS.items():
        total = sum(row[key] for row in rows.values())
        table.add_column(head, footer=str(total), justify="right")
    for title, row in rows.items():
        table.add_row(title, *(str(row[key]) for key in COLUMNS))
    return table
