"""The compiler's modules import one another, and the language, in one direction."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "sgl_mlx"
FILES = [*ROOT.glob("program.py"), *(ROOT / "lang").glob("pr*.py"), *ROOT.glob("compiler/**/*.py")]


def _name(path: Path) -> str:
    return ".".join(["sgl_mlx", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    )


MODULES = {_name(path): path for path in FILES}


def _imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere: in functions and for types alone as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & MODULES.keys()
            found |= modules or {node.module}
    return found & MODULES.keys() - {_name(path)}


def test_no_module_is_imported_by_what_it_imports_deferred_and_typing_imports_included() -> None:
    graph = {name: _imports(path) for name, path in MODULES.items()}
    assert "sgl_mlx.compiler.program" in graph["sgl_mlx.program"]
    order = list(TopologicalSorter(graph).static_order())
    assert order[-1] in ("sgl_mlx.program", "sgl_mlx.compiler")


def test_the_folders_of_the_compiler_stand_in_one_order() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        folder = ".".join(name.split(".")[:3])
        inner = {".".join(each.split(".")[:3]) for each in _imports(path)}
        graph.setdefault(folder, set()).update(inner - {folder})
    list(TopologicalSorter(graph).static_order())
