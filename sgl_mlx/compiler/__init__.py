"""The compiler: it traces a program into a graph, rewrites the graph, and runs the graph.

    compiled = program.compile()
    print(compiled.explain(topic="tea"))  # how much is compiled, and why the rest is not
    print(pretty(compiled.graph(topic="tea")))
    save(compiled.graph(topic="tea"), "program.json")
    CompiledProgram.from_graph(load("program.json")).run(topic="tea")

`sgl-mlx compile FILE:FUNCTION` shows the same on the command line; docs/compiler.md has an example.
"""

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.serialise import dumps, load, loads, save
from sgl_mlx.compiler.graph.show import dot, pretty
from sgl_mlx.compiler.program import CompiledProgram
from sgl_mlx.compiler.specialise import Pass
from sgl_mlx.compiler.tracing.explain import Explanation

__all__ = [
    "CompiledProgram",
    "Explanation",
    "Graph",
    "Pass",
    "dot",
    "dumps",
    "load",
    "loads",
    "pretty",
    "save",
]
