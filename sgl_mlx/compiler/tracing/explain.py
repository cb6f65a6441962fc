"""Explanations for people: how much of a program was traced, and why the rest was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Line
from sgl_mlx.compiler.tracing.breaks import NeedsLength


@dataclass(frozen=True)
class Remark:
    """A remark about a line of a program.

    Attributes:
        line: the line; None if the remark concerns the whole program.
        code: the source text of the line; may be empty.
        text: the remark itself.
    """

    line: Line | None
    code: str
    text: str

    def __str__(self) -> str:
        where = f"{self.line.file}:{self.line.number}: " if self.line else ""
        return f"{where}{self.text}" + (f"\n    {self.code}" if self.code else "")


@dataclass(frozen=True)
class Explanation:
    """How much of a program its graph covers, and why the rest is not covered.

    Attributes:
        program: the name of the program.
        compiled: "whole"; "part" if the graph ends at a line from which on the Python body takes
            over; "none" if the whole body is interpreted.
        steps: the number of nodes in the graph; each is a step of the program.
        remarks: why the graph ends early, and each list argument that was traced for one length.
    """

    program: str
    compiled: str
    steps: int
    remarks: tuple[Remark, ...]

    def __str__(self) -> str:
        what = {
            "whole": f"compiled as a whole: {self.steps} steps",
            "part": f"compiled up to a line: {self.steps} steps, then the program is interpreted",
            "none": "interpreted as a whole",
        }[self.compiled]
        return "\n".join([f"{self.program}() is {what}", *map(str, self.remarks)])


def explanation(graph: Graph, lengths: Mapping[str, NeedsLength]) -> Explanation:
    """Return the explanation of a graph.

    Args:
        lengths: the list arguments that were traced for one length, see `Trace.lengths`.
    """
    steps = sum(1 for _ in graph.all_nodes()) - (graph.broken is not None)
    remarks = [
        Remark(need.line, "", f"argument {name!r} is compiled for one length: {need.reason}")
        for name, need in lengths.items()
    ]
    if graph.broken is not None:
        remarks.insert(0, Remark(graph.broken.line, graph.broken.code, graph.broken.reason))
    compiled = "whole" if graph.broken is None else "part" if steps else "none"
    return Explanation(graph.program, compiled, steps, tuple(remarks))
