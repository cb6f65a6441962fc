"""Metal's address spaces, checked: the generated text as C++ for OpenCL, whose `__global`,
`__local`, `__constant` and `__private` are Metal's `device`, `threadgroup`, `constant`, `thread`.

Finds what the emulator cannot, where all spaces are one: a pointer into the wrong space, a
`device` pointer to an input of fewer than 8 elements (which MLX declares `constant`), a write
through const, a `threadgroup` variable outside the kernel, a double. The lints find the rest.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from tests.metal_kernels.emulator.errors import CompileError
from tests.metal_kernels.emulator.rewrite import Token, tokens_of, without_attributes
from tests.metal_kernels.emulator.toolchain import SHIM, required_compiler
from tests.metal_kernels.emulator.trace import Msl

MOST_BUFFERS = 31
_SPACES = {"device", "constant", "thread", "threadgroup"}
_COMMAND = (
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
    *("-target", "spir64-unknown-unknown", "-Xclang", "-cl-ext=+all", "-fsyntax-only"),
    *("-Wno-everything", f"-I{SHIM}", "-include", "metal_for_opencl.hpp", "-"),
)


def check_types(msl: Msl) -> None:
    """Raises CompileError where C++ for OpenCL refuses the kernel."""
    done = subprocess.run(
        [required_compiler(), *_COMMAND], input=as_opencl(msl), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise CompileError(done.stderr)


def lint(msl: Msl) -> list[str]:
    """List faults that no compiler here would report, one sentence each."""
    found = []
    if not msl.text.isascii():
        line = next(n for n, text in enumerate(msl.text.splitlines(), 1) if not text.isascii())
        found.append(f"line {line}: not ASCII, and MLX hands the text over as ASCII")
    if len(msl.buffers) > MOST_BUFFERS:
        found.append(f"{len(msl.buffers)} buffers: Metal has {MOST_BUFFERS}")
    tokens = [t for t in without_attributes(tokens_of(msl.text)) if t.kind != "include"]
    for token in _unqualified_pointers(tokens):
        found.append(f"line {token.line}: a pointer or reference without an address space")
    return found


def as_opencl(msl: Msl) -> str:
    """The text with template arguments in place and without what only Metal has."""
    text = "".join(
        t.text for t in without_attributes(tokens_of(msl.text), keep="kernel")
        if t.kind != "include"
    )  # fmt: skip
    text, _, _ = text.partition("template  __kernel decltype(")
    name = re.escape(msl.name)
    head = rf"(?:template <(?P<parameters>[^<>]*)>\s*)?__kernel void {name}\("
    return re.sub(head, lambda m: _specialised(msl, m["parameters"] or ""), text)


def _specialised(msl: Msl, parameters: str) -> str:
    values = msl.call.partition("<")[2].removesuffix(">").split(", ")
    lines = []
    for parameter, value in zip(filter(None, parameters.split(", ")), values, strict=False):
        kind, name = parameter.split()
        is_type = kind in ("typename", "class")
        lines.append(f"typedef {value} {name};" if is_type
                     else f"constant constexpr {kind} {name} = {value};")  # fmt: skip
    return " ".join([*lines, f"__kernel void {msl.name}("])


def _unqualified_pointers(tokens: list[Token]) -> Iterator[Token]:
    """Tokens `*` and `&` of declarations: written, as here, next to the type (`T* x`)."""
    for i in range(1, len(tokens) - 2):
        before, mark, space, name = tokens[i - 1 : i + 3]
        is_type = before.kind == "word" or before.text == ">"
        declares = mark.text in "*&" and space.kind == "space" and name.kind == "word"
        if is_type and declares and not _SPACES & set(_declaration_before(tokens, i)):
            yield mark


def _declaration_before(tokens: list[Token], at: int) -> Iterator[str]:
    depth = 0
    for token in reversed(tokens[:at]):
        depth += (token.text == ">") - (token.text == "<")
        if depth <= 0 and token.text in ("(", ",", ";", "{", "}"):
            return
        yield token.text
