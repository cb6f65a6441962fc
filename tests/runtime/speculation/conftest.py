"""Engines that draft with the prediction head of their checkpoint wherever it may be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.runtime import assembly
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.speculation import drafting
from tests.runtime.speculation.costs import CHEAP, FREE

Open = Callable[..., Engine]


@pytest.fixture
def open_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """`open_engine(folder, **options)`: an engine that drafts wherever a guess may be right."""
    engines: list[Engine] = []
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(assembly, "measure_head", lambda *_: CHEAP)

    def make(folder: Path, **options: Any) -> Engine:
        engines.append(Engine(str(folder), **{"max_total_tokens": 4000, **options}))
        return engines[-1]

    mx.disable_compile()
    yield make
    for engine in engines:
        engine.shutdown()
    mx.enable_compile()
