"""Nodes of graphs made by hand: what a program appends, with texts as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.nodes import Append, text_node
from sgl_mlx.compiler.graph.values import Value, plain
from sgl_mlx.lang import ir


def text(id: int, stream: int, value: Value) -> Append:
    return text_node(id, stream, value)


def gen(id: int, stream: int, name: Value, sampling: Mapping[str, Any] | None = None) -> Append:
    return Append(id, stream, ir.Gen(plain(name), sampling or {}))


def select(id: int, stream: int, name: Value, choices: tuple[Value, ...]) -> Append:
    method = CHOICES_METHODS["token_length_normalized"]
    return Append(id, stream, ir.Select(plain(name), tuple(map(plain, choices)), method))


def image(id: int, stream: int, source: Value) -> Append:
    return Append(id, stream, ir.Image(plain(source)))


def role_begin(id: int, stream: int, role: ir.Role) -> Append:
    return Append(id, stream, ir.RoleBegin(role))


def role_end(id: int, stream: int, role: ir.Role) -> Append:
    return Append(id, stream, ir.RoleEnd(role))


def scope_begin(id: int, stream: int, name: Value) -> Append:
    return Append(id, stream, ir.VarScopeBegin(plain(name)))


def scope_end(id: int, stream: int, name: Value) -> Append:
    return Append(id, stream, ir.VarScopeEnd(plain(name)))
