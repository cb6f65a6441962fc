"""A model with LoRA adapters over two ranks answers as on one process, and as without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tests.models.test_lora import write_adapter
from tests.models.toy import toy_model
from tests.runtime.ranks.adapters import LACKING, answers
from tests.runtime.ranks.launcher import Launched, lines, python
from tests.runtime.ranks.toys import write_quantized_toy, write_toy

RANK = 3


def adapt(model: Path, folder: Path) -> Path:
    """Write an adapter of all linear layers of a toy."""
    config = json.loads((model / "config.json").read_text())
    draw = np.random.default_rng(3)
    whole = toy_model(config["model_type"], config)
    shapes = {n: m.weight.shape for n, m in whole.named_modules() if isinstance(m, nn.Linear)}
    pairs = {
        name: tuple(
            0.1 * draw.normal(size=size).astype(np.float32)
            for size in ((inputs, RANK), (RANK, outputs))
        )
        for name, (outputs, inputs) in shapes.items()
    }
    return write_adapter(folder, pairs, "PEFT")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every layer divided, plain and quantized; sums outside of the layers; whole layers."""
    folder = tmp_path_factory.mktemp("toys")
    models: list[tuple[Path, dict[str, Any]]] = [
        (write_toy(folder / "plain", "llama"), {}),
        (write_quantized_toy(folder / "quantized"), {}),
        (write_toy(folder / "hybrid", "qwen3_5"), {}),
        (write_toy(folder / "layers", "qwen2"), {"pipeline": True}),
    ]
    return [
        {"model": str(path), "adapter": str(adapt(path, folder / f"{path.name}-lora")), **options}
        for path, options in models
    ]


def test_adapters_answer_as_on_one_process_beside_their_base(
    cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "answers"
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / "0" / LACKING).symlink_to(cases[0]["adapter"])
    changes = {rank: {"cwd": str(tmp_path / str(rank))} for rank in (0, 1)}
    command = python("tests.runtime.ranks.adapters", str(file), json.dumps(cases))
    with Launched(tmp_path / "run", command, changes=changes) as ranks:
        assert ranks.codes() == [0, 0], ranks.output(0, "err") + ranks.output(1, "err")
    *found, last = lines(file.read_text())
    mx.disable_compile()
    try:
        for case, over_ranks in zip(cases, found, strict=True):
            alone = answers(**case)
            assert over_ranks == alone, case["model"]
            assert alone["adapted"] != alone["after"], case["model"]
    finally:
        mx.enable_compile()
    lacking, other, module = last["refused"]
    assert "rank 1 on " in lacking
    assert f"{LACKING} is no adapter" in lacking
    assert "several ranks run one model at a time" in other
    assert "UnsupportedModelError" in module
    assert "its share of the module" in module
