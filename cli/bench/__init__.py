"""The command group `sgl-mlx bench`: benchmarks, one command in each file."""

from __future__ import annotations

import click

from sgl_mlx.cli.bench.compiler import compiler
from sgl_mlx.cli.bench.constrained import constrained
from sgl_mlx.cli.bench.engine import engine
from sgl_mlx.cli.bench.kernels import kernels
from sgl_mlx.cli.bench.llava import llava
from sgl_mlx.cli.bench.loc import loc
from sgl_mlx.cli.bench.memory import memory
from sgl_mlx.cli.bench.overhead import overhead
from sgl_mlx.cli.bench.prefetch import prefetch
from sgl_mlx.cli.bench.project import project
from sgl_mlx.cli.bench.recurrent import recurrent
from sgl_mlx.cli.bench.serve import serve
from sgl_mlx.cli.bench.soak import soak
from sgl_mlx.cli.bench.speculation import speculation
from sgl_mlx.cli.bench.suite import suite


@click.group()
def bench() -> None:
    """Run a benchmark; most compare two systems on this machine in one run."""


commands = (
    *(engine, constrained, speculation, compiler, kernels, recurrent, suite, serve, soak),
    *(loc, project, memory, prefetch, llava, overhead),
)
for command in commands:
    bench.add_command(command)
