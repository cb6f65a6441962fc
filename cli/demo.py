"""`sgl-mlx demo`: two short programs, and what running them took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import model_option, open_engine

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "computed_tokens": "computed",
    "decode_tokens": "generated",
    "forward_passes": "passes",
    "model_seconds": "model s",
    "schedule_seconds": "schedule s",
    "tree_seconds": "tree s",
}


@click.command()
@model_option
def demo(model: str | None) -> None:
    """Run two short programs and show what they shared."""
    from rich.console import Console

    from sgl_mlx.cli.demo_programs import CITIES, MAIL, day_out, sort_mail

    before: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    with open_engine(model) as engine:

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

        click.echo("\na batch of messages, each sorted by one choice\n")
        batch = [{"message": message} for message in MAIL]
        for row, state in zip(batch, sort_mail.run_batch(batch, backend=engine), strict=True):
            _show(state["team"], row["message"])
        account(f"{len(MAIL)} messages")
    click.echo()
    Console().print(_table(rows))
    click.echo(
        "cached: prompt tokens whose keys and values the radix tree held or another branch was\n"
        "just computing. No program asked for it. Next: sgl-mlx run examples/hello.py"
    )


def _show(label: str, text: str) -> None:
    click.echo(f"  {label}: {text}")


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a program, and their sum."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("tokens of", footer="together")
    for key, head in COLUMNS.items():
        total = sum(row[key] for row in rows.values())
        table.add_column(head, footer=_figure(total), justify="right")
    for title, row in rows.items():
        table.add_row(title, *(_figure(row[key]) for key in COLUMNS))
    return table


def _figure(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
