"""Prints which files of the package a call enters, in order: `python -m tests.trail`.

The engine's own threads count. Each call is made once with another prompt before it is recorded,
so that nothing is imported or built for the first time meanwhile.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.runtime.engine import Engine
from tests.runtime.conftest import write_toy
from tests.runtime.llava import picture, write_llava

PACKAGE = Path(sgl.__file__).resolve().parent
FORWARD = "models/adapter.py"
"""Where the forward pass of the model is called."""


class Trail:
    """Records files that are entered by this thread, and by those started within `with`."""

    def __init__(self) -> None:
        self._files: dict[str, None] = {}
        self._recording = False

    def __enter__(self) -> Trail:
        threading.setprofile(self._enter)
        sys.setprofile(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # None is what ends it

    def of(self, call: Callable[[str, int], object]) -> list[str]:
        """The files that a call with a prompt and a number of tokens enters, in the package."""
        call("other words", 1)  # with one token no decode epoch is left to be written
        self._files.clear()
        self._recording = True
        try:
            call("some words", 4)
        finally:
            self._recording = False
        prefix = f"{PACKAGE}/"
        return [name.removeprefix(prefix) for name in self._files if name.startswith(prefix)]

    def _enter(self, frame: FrameType, event: str, _: object) -> None:
        if self._recording and event == "call":
            self._files.setdefault(frame.f_code.co_filename)


@sgl.function
def gen(s: sgl.ProgramState, text: str, tokens: int) -> None:
    s += text + "a" + sgl.gen("answer", max_tokens=tokens, temperature=0)


@sgl.function
def select(s: sgl.ProgramState, text: str, tokens: int) -> None:
    s += text + "b" + sgl.select("answer", choices=["yes", "no"])


@sgl.function
def image(s: sgl.ProgramState, text: str, tokens: int) -> None:
    s += text + sgl.image(picture(1)) + "what" + sgl.gen("answer", max_tokens=tokens, temperature=0)


def text_trails(folder: Path) -> dict[str, list[str]]:
    """Trails of calls on a toy model of text."""
    with Trail() as trail, Engine(str(folder), max_total_tokens=1000) as engine:

        def generate(text: str, tokens: int) -> object:
            return engine.generate(text, {"max_new_tokens": tokens, "temperature": 0})

        return {
            "generate": trail.of(generate),
            "gen": trail.of(partial(answer, gen, engine)),
            "select": trail.of(partial(answer, select, engine)),
        }


def answer(program: Any, engine: Engine, *args: Any) -> object:
    return program.run(*args, backend=engine)["answer"]


def image_trail(folder: Path) -> list[str]:
    """The trail of a program that shows a picture to a toy model."""
    with Trail() as trail, Engine(str(folder), max_total_tokens=1000) as engine:
        return trail.of(partial(answer, image, engine))


def main() -> None:
    with TemporaryDirectory() as scratch:
        trails = text_trails(write_toy(Path(scratch) / "text"))
        trails["image"] = image_trail(write_llava(Path(scratch) / "image"))
    for name, files in trails.items():
        sys.stdout.write(f"\n{name}: {len(files)} files\n")
        for number, file in enumerate(files, 1):
            sys.stdout.write(f"{number:4} {file}{'   <- the model' * (file == FORWARD)}\n")


if __name__ == "__main__":
    main()
