"""Programs as plain data: a tree of statements that can be drawn, run, shrunk and printed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.lang import choices, words
from sgl_mlx.lang.state import ProgramState

BY_KV = "concate_and_append"
"""The join that puts the keys and values of branches side by side."""
BY_VARIABLE = "gather_variable"


@dataclass(frozen=True)
class Say:
    """Text that the program appends."""

    text: str


@dataclass(frozen=True)
class Show:
    """A picture of random pixels that the program appends; see `noise`."""

    number: int
    height: int = 24
    width: int = 32


@dataclass(frozen=True)
class Ask:
    """A `gen` that sets variable `name`, with the sampling parameters `sampling`."""

    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choose:
    """A `select` that sets variable `name`; `method` is a name in `lang.choices`."""

    name: str
    choices: tuple[str, ...]
    method: str = "token_length_normalized"


@dataclass(frozen=True)
class Turn:
    """A turn of a chat; `body` are the statements inside it."""

    role: str
    body: Body


@dataclass(frozen=True)
class Fork:
    """Branches of one state.

    Attributes:
        join: the mode of the join after the branches; None for no join.
        gaps: for each branch, how many positions it skips; empty for none.
    """

    branches: tuple[Body, ...]
    join: str | None = None
    gaps: tuple[int, ...] = ()

    @property
    def is_linear(self) -> bool:
        """True if each branch means the same as a program of its own without the fork."""
        return self.join != BY_KV and not any(self.gaps)


Statement = Say | Show | Ask | Choose | Turn | Fork
Body = tuple[Statement, ...]


@dataclass(frozen=True)
class Program:
    """A program: its statements, and the sampling parameters given to `run`."""

    body: Body
    settings: Mapping[str, Any] = field(default_factory=dict)


Function = Callable[[ProgramState], None]


def function_of(body: Body) -> Function:
    """Return the body of a program as a function of the state."""

    def function(s: ProgramState) -> None:
        _perform(s, body)

    return function


def _perform(s: ProgramState, body: Body) -> None:
    for statement in body:
        match statement:
            case Say(text):
                s += text
            case Show(number, height, width):
                s += words.image(noise(number, height, width))
            case Ask(name, sampling):
                s += words.gen(name, **sampling)
            case Choose(name, offered, method):
                s += words.select(name, offered, choices_method=getattr(choices, method))
            case Turn(role, inner):
                with getattr(s, role)():
                    _perform(s, inner)
            case Fork():
                _fork(s, statement)


def _fork(s: ProgramState, fork: Fork) -> None:
    group = s.fork(len(fork.branches), fork.gaps or None)
    for state, body in zip(group, fork.branches, strict=True):
        _perform(state, body)
    for state in group:
        state.sync()
    if fork.join is not None:
        group.join(fork.join)  # type: ignore[arg-type]


def lanes(body: Body) -> Iterator[Body]:
    """Unroll the forks of a program: yield programs without them that ask for the same answers.

    The first is the program without its linear forks; one for each of their branches follows. A
    fork that is not linear stays in its place.
    """
    trunk: list[Statement] = []
    branches: list[Body] = []
    for statement in body:
        if isinstance(statement, Fork) and statement.is_linear:
            for inner in statement.branches:
                branches += [(*trunk, *lane) for lane in lanes(inner)]
        else:
            trunk.append(statement)
    yield tuple(trunk)
    yield from branches


def forks(body: Body) -> bool:
    """Return True if a program has a linear fork, which `lanes` unrolls."""
    return any(isinstance(statement, Fork) and statement.is_linear for statement in body)


def noise(number: int, height: int = 24, width: int = 32) -> bytes:
    """Return a picture as the bytes of a PNG file, another one for each number."""
    import random

    from PIL import Image

    pixels = random.Random(f"{number} {height} {width}").randbytes(3 * height * width)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(file, "png")
    return file.getvalue()
