"""Generator of `docs/api.md` from docstrings: `python -m sgl_mlx.cli.api_reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import click

from sgl_mlx import errors
from sgl_mlx.benchmarks.modelled import kv_sizes
from sgl_mlx.cli.docstrings import Docstring, table
from sgl_mlx.core import FinishReason, GenerateResult, MetaInfo, SamplingParams
from sgl_mlx.lang.backend import Backend
from sgl_mlx.runtime.cache.snapshots import SnapshotStats
from sgl_mlx.runtime.cache.windows import WindowStats
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.disk.open import DiskStats
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.scheduler.admission import Counters
from sgl_mlx.runtime.scheduler.plan import EncoderStats, RunnerStats
from sgl_mlx.runtime.stats import EngineStats
from sgl_mlx.runtime.vision.pictures import PictureStats

INTRODUCTION = """\
# The API

Made from docstrings by `make docs`; edit those, not this page. The words of programs are in
[language.md](language.md), the commands in [cli.md](cli.md).
"""
STATS: dict[str, tuple[type, str]] = {
    "Tokens and passes": (Counters, ""),
    "Time and slots": (EngineStats, ""),
    "The runner": (RunnerStats, ""),
    "Recurrent states": (SnapshotStats, ""),
    "Layers with a sliding window": (WindowStats, ""),
    "The disk tier": (DiskStats, "disk_"),
    "Pictures": (PictureStats, ""),
    "The vision tower": (EncoderStats, ""),
}
"""Parts of `get_server_info()["stats"]` by heading: the class, and the prefix of its keys."""

_NESTED = ("counters", "runner", "states", "windows", "disk", "pictures", "encoder")


def reference() -> str:
    """Return the whole page as Markdown."""
    sections = [_engine(), _sampling(), _answers(), _stats(), _errors(), _sizes()]
    return "\n".join([INTRODUCTION, *(line for section in sections for line in section)])


def _engine() -> Iterator[str]:
    yield f"## `Engine`\n\n{Docstring.of(Engine).text}\n"
    yield f"### Options\n\n{Docstring.of(EngineConfig).text}\n"
    yield f"{_fields(EngineConfig)}\n"
    yield "### Methods\n"
    for name, member in vars(Engine).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            yield from _method(name, member)
    [keywords] = get_args(get_type_hints(Engine.submit)["keywords"])
    yield f"### Keywords of a request\n\n{Docstring.of(keywords).text}\n"
    yield f"{_described(keywords, keywords.__annotations__)}\n"


def _method(name: str, member: Any) -> Iterator[str]:
    found = Docstring.of(member)
    if found.text.startswith("See `lang.backend.Backend"):
        found = Docstring.of(getattr(Backend, name))
    arguments = [p for p in inspect.signature(member).parameters.values() if p.name != "self"]
    spelled = ", ".join("**" * (p.kind is p.VAR_KEYWORD) + p.name for p in arguments)
    yield f"#### `{name}({spelled})`\n\n{found.text}\n"
    yield from (f"- `{argument}`: {text}" for argument, text in found.entries.items())
    for head, text in (("Returns", found.returns), ("Raises", found.raises)):
        if text:
            yield f"\n{head}: {text}"
    yield ""


def _sampling() -> Iterator[str]:
    yield f"## Sampling parameters\n\n{Docstring.of(SamplingParams).text}\n"
    yield f"{_fields(SamplingParams)}\n"


def _answers() -> Iterator[str]:
    yield f"## Answers\n\n{Docstring.of(GenerateResult).text}\n"
    yield f"### `meta_info`\n\n{Docstring.of(MetaInfo).text}\n"
    yield f"{_described(MetaInfo, MetaInfo.__annotations__)}\n"
    reason = f"{Docstring.of(FinishReason).text} Entries that are None are left out."
    yield f"### `finish_reason`\n\n{reason}\n"
    yield f"{_described(FinishReason, (f.name for f in fields(FinishReason)))}\n"


def _stats() -> Iterator[str]:
    yield '## Stats\n\n`engine.get_server_info()["stats"]`, since the engine\'s start.\n'
    for title, (part, prefix) in STATS.items():
        names = [f.name for f in fields(part) if f.name not in _NESTED]
        yield f"### {title}\n\n{_described(part, names, prefix)}\n"


def _errors() -> Iterator[str]:
    summary, tree = (inspect.getdoc(errors) or "").split("\n\n", 1)
    yield f"## Errors\n\n{summary}\n\n```text\n{tree.strip()}\n```\n"


def _sizes() -> Iterator[str]:
    yield f"## Keys and values of a token\n\n{kv_sizes.INTRODUCTION}\n"
    yield table(kv_sizes.HEADS, map(kv_sizes.Row.cells, kv_sizes.rows())) + "\n"


def _fields(thing: Any) -> str:
    """Return a table of a dataclass's fields with their defaults."""
    assert is_dataclass(thing)
    entries = Docstring.of(thing).entries
    rows = ((f"`{f.name}`", f"`{f.default!r}`", entries[f.name]) for f in fields(thing))
    return table(("name", "default", "meaning"), rows)


def _described(thing: Any, names: Iterable[str], prefix: str = "") -> str:
    entries = Docstring.of(thing).entries
    return table(("name", "meaning"), ((f"`{prefix}{name}`", entries[name]) for name in names))


if __name__ == "__main__":
    click.echo(reference(), nl=False)
