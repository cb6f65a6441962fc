"""Program files: load them, choose a program, parse its arguments, and show its errors."""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import click

from sgl_mlx.errors import BatchError, ProgramError, SglError
from sgl_mlx.lang.program import RESERVED, Program
from sgl_mlx.lang.state import ProgramState

MODULE_NAME = "__sgl_program__"


class ProgramFailed(click.ClickException):
    """An exception raised by the user's program, shown as a Python traceback.

    The traceback has only the frames of the program's file. For a batch, the frames of the first
    failed row follow.
    """

    def __init__(self, error: BaseException, path: Path) -> None:
        super().__init__(str(error))
        row = error.__cause__ if isinstance(error, BatchError) else None
        self.frames = [*_frames(error, path), *(_frames(row, path) if row else ())]
        self._last = traceback.format_exception_only(type(error), error)

    def show(self, file: IO[Any] | None = None) -> None:
        lines = ["Traceback (your program only):\n", *traceback.format_list(self.frames)]
        click.echo("".join([*(lines if self.frames else ()), *self._last]), nl=False, err=True)


def _frames(error: BaseException, path: Path) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if frame.filename == str(path)]


def split_target(target: str) -> tuple[Path, str | None]:
    """Split `FILE` or `FILE:FUNCTION` into an absolute path and a function name or None.

    Raises:
        click.BadParameter: the file does not exist.
    """
    file, colon, name = target.rpartition(":")
    if not colon or Path(target).exists():
        file, name = target, ""
    path = Path(file).resolve()
    if not path.is_file():
        raise click.BadParameter(f"there is no file {file}", param_hint="FILE")
    return path, name or None


def load(path: Path) -> ModuleType:
    """Import a Python file by its path and return the module.

    The file's folder is put first on `sys.path`, as when Python runs a script.

    Raises:
        ProgramError: the file's name does not end in .py.
        Exception: any exception that the file's own code raises.
    """
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ProgramError(f"{path.name} is no Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module  # dataclasses and pickle look their module up by name
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


def choose(module: ModuleType, path: Path, name: str | None) -> Program:
    """Return the program called `name`; without a name, the file's only program, or `main`.

    A program that the file gives several names counts once.

    Args:
        module: the imported file.
        path: the file, for error messages.

    Raises:
        ProgramError: no program has this name; or, without a name, the file has no program, or
            several of which none is called `main`.
    """
    named = {k: v for k, v in vars(module).items() if isinstance(v, Program)}
    if name in named:
        return named[name]
    programs = _without_aliases(named)
    known = ", ".join(programs)
    if not programs:
        raise ProgramError(
            f"{path.name} has no program: decorate a function whose first parameter is s "
            "with @sgl.function"
        )
    if name is None and len(programs) > 1 and "main" not in programs:
        first = next(iter(programs))
        raise ProgramError(
            f"{path.name} has several programs ({known}); name one: {path.name}:{first}"
        )
    wanted = name or ("main" if "main" in programs else known)
    if wanted not in programs:
        raise ProgramError(f"{path.name} has no program {wanted!r}; it has {known}")
    return programs[wanted]


def _without_aliases(named: Mapping[str, Program]) -> dict[str, Program]:
    """Keep one name for each program: `main`, else the function's name, else the first name."""
    by_program: dict[object, list[str]] = {}
    for name, program in named.items():
        # A compiled program counts as its source; one with other bound arguments does not.
        bound = frozenset((key, id(value)) for key, value in program.bind_arguments.items())
        by_program.setdefault((id(program.func), bound), []).append(name)
    chosen = [
        next((n for n in ("main", named[names[0]].name) if n in names), names[0])
        for names in by_program.values()
    ]
    return {name: named[name] for name in chosen}


def read_arguments(program: Program, pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `name=value` pairs into keyword arguments for a program.

    A value that is JSON (`3`, `true`, `["a"]`, `"3"`) is decoded; any other value is text.

    Raises:
        click.BadParameter: a pair has no `=`, the program has no parameter of a given name, a
            required argument is missing, or a name is that of an option of `run()`.
    """
    given = read_pairs(pairs)
    required, optional = _parameters(program)
    kinds = {p.kind for p in program.signature.parameters.values()}
    takes = ", ".join([*required, *(f"{name} (optional)" for name in optional)]) or "none"
    if taken := [name for name in given if name in RESERVED]:
        raise _bad(f"run() has an option {taken[0]} of its own; rename the parameter")
    unknown = [name for name in given if name not in required + optional]
    if unknown and Parameter.VAR_KEYWORD not in kinds:
        raise _bad(f"{program.name} takes no {', '.join(unknown)}; it takes: {takes}")
    if missing := [name for name in required if name not in given]:
        raise _bad(f"{program.name} needs {', '.join(missing)}; it takes: {takes}")
    return given


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `name=value` pairs into a dictionary; values that are JSON are decoded.

    Raises:
        click.BadParameter: a pair has no `=`.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise _bad(f"expected NAME=VALUE, got {pair!r}")
        given[name] = _value(value)
    return given


@contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """Turn exceptions raised in the `with` block into `ProgramFailed`.

    Raised unchanged are click's exceptions, BrokenPipeError, and every `SglError` and `OSError`
    whose traceback has no frame in the user's file `path`.
    """
    try:
        yield
    except (click.ClickException, BrokenPipeError):
        raise
    except Exception as error:
        failed = ProgramFailed(error, path)
        if isinstance(error, (SglError, OSError)) and not failed.frames:
            raise
        raise failed from error


def variables(state: ProgramState) -> dict[str, Any]:
    """Return the named variables of a finished program, by name."""
    return {name: state[name] for name in state.stream_executor.bindings if name is not None}


def returned(state: ProgramState) -> dict[str, Any]:
    """Return a finished program's result as `{"return_value": value}`; empty if it is None."""
    return {} if state.ret_value is None else {"return_value": state.ret_value}


def _parameters(program: Program) -> tuple[list[str], list[str]]:
    """Return the names of a program's required and optional parameters.

    The first parameter, `s`, parameters with bound arguments, `*args` and `**kwargs` are left out.
    """
    _, *rest = program.signature.parameters.values()
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    free = [p for p in rest if p.name not in program.bind_arguments and p.kind not in several]
    required = [p.name for p in free if p.default is p.empty]
    return required, [p.name for p in free if p.name not in required]


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_not_json)
    except ValueError:
        return text


def _not_json(constant: str) -> None:
    raise ValueError(constant)  # Python's json accepts NaN and Infinity, which are not JSON


def _bad(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--arg")
