"""Syntax trees of Python functions, found by the functions' code objects."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

from sgl_mlx.compiler.tracing.breaks import needs_run

Function = ast.FunctionDef | ast.Lambda
_PARTS = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_firstlineno")


@dataclass(frozen=True, eq=False)
class Source:
    """The syntax tree of a function, with the line numbers of its file."""

    tree: ast.FunctionDef
    file: str


def source_of(code: CodeType) -> Source:
    """Return the syntax tree from which a code object was compiled.

    Raises:
        GraphBreak: there is no source, the function is a generator, a coroutine or no `def`, or
            the file has changed.
    """
    return _source_in(code, code.co_filename)


@lru_cache(maxsize=256)
def _source_in(code: CodeType, file: str) -> Source:
    # `file` is an argument for the cache alone: equal code objects of two files compare equal.
    name = code.co_name
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        needs_run(f"{name}() is a generator or coroutine")
    try:
        lines, _ = inspect.findsource(code)
        tree, module = _module("".join(lines))
    except (OSError, TypeError, ValueError, SyntaxError):
        needs_run(f"the source of {name}() is not available")
    found = [node for node in ast.walk(tree) if _begins_at(node, code.co_firstlineno)]
    same = any(_alike(other, code) for other in _functions_in(module, name))
    if not same or len(found) != 1 or not isinstance(found[0], ast.FunctionDef):
        needs_run(f"the source of {name}() is no plain def, or not what was imported")
    return Source(found[0], file)


@lru_cache(maxsize=32)
def _module(text: str) -> tuple[ast.Module, CodeType]:
    # The whole file is compiled, since `from __future__` imports change a function's code.
    tree = ast.parse(text)
    return tree, compile(tree, "", "exec", dont_inherit=True)


def _begins_at(node: ast.AST, line: int) -> bool:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return False
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min(each.lineno for each in (node, *decorators)) == line


def _functions_in(code: CodeType, name: str) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                yield constant
            yield from _functions_in(constant, name)


def _alike(one: CodeType, other: CodeType) -> bool:
    if any(getattr(one, part) != getattr(other, part) for part in _PARTS):
        return False
    return len(one.co_consts) == len(other.co_consts) and all(
        _alike(a, b)
        if isinstance(a, CodeType) and isinstance(b, CodeType)
        else (type(a), a) == (type(b), b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def names_assigned(function: Function | list[ast.stmt]) -> frozenset[str]:
    """Return the names that a function body or statements assign, except inside inner scopes."""
    body = function if isinstance(function, list) else function.body
    nodes: Sequence[ast.AST] = body if isinstance(body, list) else [body]
    return frozenset(name for node in nodes for name in _assigned(node))


def _assigned(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
        yield node.id
    if isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from _assigned(child)
