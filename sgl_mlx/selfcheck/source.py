"""Programs printed as Python source that runs them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgl_mlx.selfcheck.statements import (
    Ask,
    Body,
    Choose,
    Fork,
    Program,
    Say,
    Show,
    Statement,
    Turn,
)
from sgl_mlx.selfcheck.ways import Way

_METHOD = "token_length_normalized"


def source_of(
    programs: Sequence[Program],
    way: Way,
    model: str,
    rounds: Sequence[Sequence[int]],
    options: Mapping[str, Any],
) -> str:
    """Return Python source that runs programs alone and in another way, and compares.

    Args:
        way: the way that showed a difference.
        rounds: indices of the programs that run together, round by round.
        options: options of all engines.
    """
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    if way.elsewhere:
        # functions of a script cannot be sent to a new process
        groups = ", ".join(repr([programs[i] for i in group]) for group in rounds)
        lines = ["from sgl_mlx.selfcheck import *  # noqa: F403", 'if __name__ == "__main__":']
        return "\n".join([*lines, f"    reproduce({way.name!r}, {groups}, model={model!r}{given})"])
    bodies = [line for i, program in enumerate(programs) for line in _function(i, program)]
    text = "\n".join(bodies)
    names = ["noise", "reproduce"] if "noise(" in text else ["reproduce"]
    shown = [f"(p{i}, {dict(program.settings)!r})" for i, program in enumerate(programs)]
    groups = ", ".join(f"[{', '.join(shown[i] for i in group)}]" for group in rounds)
    return "\n".join(
        [
            *["import sgl_mlx as sgl"] * ("sgl." in text),
            f"from sgl_mlx.selfcheck import {', '.join(names)}",
            *bodies,
            f"reproduce({way.name!r}, {groups}, model={model!r}{given})",
        ]
    )


def _function(index: int, program: Program) -> Iterator[str]:
    yield f"def p{index}(s):"
    yield from _indented(list(_lines("s", program.body)) or ["pass"])


def _lines(s: str, body: Body) -> Iterator[str]:
    for statement in body:
        yield from _statement(s, statement)


def _statement(s: str, statement: Statement) -> Iterator[str]:
    match statement:
        case Say(text):
            yield f"{s} += {text!r}"
        case Show(number, height, width):
            yield f"{s} += sgl.image(noise({number}, {height}, {width}))"
        case Ask(name, sampling):
            given = "".join(f", {key}={value!r}" for key, value in sampling.items())
            yield f"{s} += sgl.gen({name!r}{given})"
        case Choose(name, offered, method):
            how = "" if method == _METHOD else f", choices_method=sgl.{method}"
            yield f"{s} += sgl.select({name!r}, {list(offered)!r}{how})"
        case Turn(role, inner):
            yield f"with {s}.{role}():"
            yield from _indented(list(_lines(s, inner)) or ["pass"])
        case Fork(branches, join, gaps):
            group = "forks" if s == "s" else s.replace("forks", "inner")
            skipped = f", {list(gaps)}" if any(gaps) else ""
            yield f"{group} = {s}.fork({len(branches)}{skipped})"
            for i, inner in enumerate(branches):
                nested = any(isinstance(each, Fork) for each in inner)
                if nested:  # a name of its own, from which the names of its branches are made
                    yield f"{group}_{i} = {group}[{i}]"
                yield from _lines(f"{group}_{i}" if nested else f"{group}[{i}]", inner)
            if join is not None:
                yield f"{group}.join({join!r})"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]
