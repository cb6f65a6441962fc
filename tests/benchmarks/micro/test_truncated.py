"""A truncated model is the model's own first layers, and drafts for the whole one."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx.benchmarks.micro.truncated import write_truncated
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.models.loader import load
from sgl_mlx.runtime.engine import Engine


def test_it_computes_what_the_first_layers_compute(toy_folder: Path, tmp_path: Path) -> None:
    whole = load(toy_folder, dtype="float32")
    layers = whole.config["num_hidden_layers"] - 1
    write_truncated(toy_folder, layers, tmp_path)
    cut = load(tmp_path, dtype="float32")
    trunk = whole.model.model
    trunk.layers = trunk.layers[:layers]
    ids = mx.array([[3, 7, 5, 11]])
    assert mx.array_equal(cut.model(ids), whole.model(ids))
    assert cut.tokenizer.encode("a text") == whole.tokenizer.encode("a text")
    assert cut.tokenizer.eos_token_ids == whole.tokenizer.eos_token_ids


def test_it_drafts_for_the_whole_model(toy_folder: Path, tmp_path: Path) -> None:
    write_truncated(toy_folder, 1, tmp_path)
    params = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    with (
        Engine(str(toy_folder), max_total_tokens=400, draft=str(tmp_path)) as drafting,
        Engine(str(toy_folder), max_total_tokens=400, speculate="off") as plain,
    ):
        found, right = (e.generate("a b", params)["output_ids"] for e in (drafting, plain))
    assert found == right


@pytest.mark.parametrize("layers", [0, 1000])
def test_a_number_of_layers_that_leaves_no_model_is_refused(
    toy_folder: Path, tmp_path: Path, layers: int
) -> None:
    with pytest.raises(BenchmarkError, match="layers"):
        write_truncated(toy_folder, layers, tmp_path)
