"""`sgl-mlx cache-doctor`: where recorded prompts stopped matching earlier prompts, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli import streams
from sgl_mlx.cli.output import print_document
from sgl_mlx.cli.serve import require_packages

if TYPE_CHECKING:
    from sgl_mlx.server.doctor.history import Seen


@click.command("cache-doctor")
@click.argument("log", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead of text.")
def cache_doctor(log: str, as_json: bool) -> None:
    """Show where the prompts in LOG stop matching earlier prompts, and how to avoid it.

    From that place on, a prompt cannot use the KV cache of an earlier prompt. LOG has a line of
    JSON for each prompt: what `sgl-mlx serve --cache-log LOG` wrote, or the bodies of requests in
    OpenAI's or Anthropic's form, in the order in which they came. "-" reads standard input.
    """
    require_packages()
    from sgl_mlx.server.doctor.replay import replayed  # an optional extra

    seen = list(replayed(streams.read_all() if log == "-" else streams.read_file(log)))
    if as_json:
        print_document({"prompts": [one.to_dict() for one in seen]})
        return
    for one in seen:
        click.echo("\n".join(_lines(one)))
    click.echo(_summary(seen))


def _lines(seen: Seen) -> list[str]:
    counted = seen.prompt_tokens is not None
    hit = f", {seen.cached_tokens} of {seen.prompt_tokens} tokens cached" if counted else ""
    unit = "characters" if isinstance(seen.content, str) else "tokens"
    whole = len(seen.content)
    lines = [f"{seen.id}: {seen.cause.name}{hit}; {seen.at} of {whole} {unit} as before"]
    if not seen.cause.wasted:
        return lines
    cost = "" if seen.cost is None else f"  cost: {seen.cost} s"
    shown = [f"  - {seen.before!r}", f"  + {seen.after!r}"] if seen.before != seen.after else []
    return [*lines, *shown, f"  {seen.cause.advice}{cost}"]


def _summary(seen: Sequence[Seen]) -> str:
    """Return a line with the number of prompts, and the number of broken prefixes by cause."""
    broken = Counter(one.cause.name for one in seen if one.cause.wasted)
    told = ", ".join(f"{count} {name}" for name, count in broken.most_common()) or "none"
    costs = [one.cost for one in seen if one.cost is not None]
    cost = f"; {sum(costs):.1f} s computed again" if costs else ""
    return f"{len(seen)} prompts; broken prefixes: {told}{cost}"
