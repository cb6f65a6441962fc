"""The command line on a scripted model: `sgl(...)` runs a command as a user would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import sgl_mlx
from sgl_mlx.cli import engine as cli_engine
from sgl_mlx.cli import main
from sgl_mlx.testing import ScriptedBackend

STATS = {"prompt_tokens": 9, "cached_tokens": 4, "decode_tokens": 3, "forward_passes": 2}


def render_chat(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    """A small chat template: `<role>text</role>`."""
    turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>\n" for m in messages)
    return turns + "<assistant>" * add_generation_prompt


class CountingBackend(ScriptedBackend):
    """A scripted backend with an engine's counters."""

    stopped = False

    def get_server_info(self) -> dict[str, Any]:
        return {"stats": dict(STATS)}

    def shutdown(self) -> None:
        self.stopped = True
        super().shutdown()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CountingBackend]:
    """`use(script, ...)` makes commands open a backend with this script, and returns it."""

    def _use(script: Any = " an answer", **options: Any) -> CountingBackend:
        backend = CountingBackend(script, render_chat=render_chat, **options)
        monkeypatch.setattr(cli_engine, "create_engine", lambda model: backend)
        return backend

    monkeypatch.setattr(sgl_mlx.global_config, "default_backend", None)
    return _use


@pytest.fixture
def sgl(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `sgl-mlx` with these arguments; `stdin=` is what the user types."""
    for name in ("SGL_MLX_MODEL", "SGL_MLX_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def _sgl(*args: str, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(main, args, input=stdin, prog_name="sgl-mlx")

    return _sgl


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 3), "gray").save(path)
    return str(path)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Writes a program file, with sgl imported, and returns its path."""

    def _program(source: str, name: str = "prog.py") -> str:
        path = tmp_path / name
        path.write_text("import sgl_mlx as sgl\n" + source, "utf-8")
        return str(path)

    return _program
