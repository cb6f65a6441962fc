"""A model with an adapter is the model with matrices added to its weights; it shares the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from sgl_mlx.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from sgl_mlx.models.loader import load
from sgl_mlx.models.lora import read_adapter, with_adapter
from sgl_mlx.runtime.engine import Engine
from tests.models.conftest import write_folder
from tests.runtime.conftest import LLAMA, toy_folder, toy_model

__all__ = ["toy_folder"]

RANK, SCALE = 3, 2.5
LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"]


def matrices(folder: Path) -> dict[str, tuple[Any, Any]]:
    """A `(in, rank)` and B `(rank, out)` of some layers of the toy."""
    draw = np.random.default_rng(5)
    shapes = {n: w.shape for n, w in mx.load(str(folder / "model.safetensors")).items()}  # type: ignore[union-attr]
    found = {}
    for layer in LAYERS:
        outputs, inputs = shapes[f"{layer}.weight"]
        a, b = draw.normal(size=(inputs, RANK)), draw.normal(size=(RANK, outputs))
        found[layer] = (0.3 * a.astype(np.float32), 0.3 * b.astype(np.float32))
    return found


def write_adapter(folder: Path, pairs: dict[str, tuple[Any, Any]], kind: str) -> Path:
    folder.mkdir()
    if kind == "mlx-lm":
        arrays = {f"{n}.lora_{x}": m for n, ab in pairs.items() for x, m in zip("ab", ab)}  # noqa: B905
        settings: Any = {"fine_tune_type": "lora", "lora_parameters": {"scale": SCALE}}
        file = "adapters.safetensors"
    else:
        arrays = {
            f"base_model.model.{n}.lora_{x}.weight": np.ascontiguousarray(m.T)
            for n, ab in pairs.items()
            for x, m in zip("AB", ab)  # noqa: B905
        }
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK}
        file = "adapter_model.safetensors"
    save_file(arrays, folder / file)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=["mlx-lm", "PEFT"])
def adapter(request: Any, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "one"
    return write_adapter(folder, matrices(toy_folder), request.param)


@pytest.fixture(scope="module")
def merged(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy with the matrices added to its weights."""
    weights = {n: np.array(w) for n, w in mx.load(str(toy_folder / "model.safetensors")).items()}  # type: ignore[union-attr]
    for layer, (a, b) in matrices(toy_folder).items():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + SCALE * (a @ b).T
    config = LLAMA.full_config()
    assert set(weights) == {n for n, _ in tree_flatten(toy_model("llama", config).parameters())}
    return write_folder(tmp_path_factory.mktemp("merged") / "toy", config, weights)


def outputs(engine: Engine) -> list[str]:
    prompts = ["ab" * n for n in range(1, 9)]
    found = engine.generate(prompts, max_new_tokens=12, temperature=0, ignore_eos=True)
    return [answer["text"] for answer in found]


def test_it_generates_as_the_merged_weights_do_and_the_base_stays_as_it_was(
    toy_folder: Path, adapter: Path, merged: Path
) -> None:
    loaded = load(str(toy_folder))
    adapted = with_adapter(loaded, read_adapter(adapter), "toy:one")
    with (
        Engine(model=loaded, max_total_tokens=2000) as base,
        Engine(model=adapted, max_total_tokens=2000) as one,
        Engine(str(merged), max_total_tokens=2000) as expected,
        Engine(str(toy_folder), max_total_tokens=2000) as alone,
        Engine(str(toy_folder), adapter=str(adapter), max_total_tokens=2000) as by_option,
    ):
        assert outputs(one) == outputs(by_option) == outputs(expected)
        assert by_option.model_name == f"{alone.model_name}:one"
        assert outputs(base) == outputs(alone) != outputs(one)
        assert one.model_name == "toy:one"


def test_the_weights_of_the_base_are_shared(toy_folder: Path, adapter: Path) -> None:
    loaded = load(str(toy_folder))
    adapted = with_adapter(loaded, read_adapter(adapter), "x")
    mine = {id(array) for _, array in tree_flatten(loaded.model.parameters())}
    added = [n for n, array in tree_flatten(adapted.model.parameters()) if id(array) not in mine]
    assert sorted(added) == sorted(f"{layer}.{x}" for layer in LAYERS for x in "ab")
    assert adapted.fingerprint != loaded.fingerprint


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), ModelNotFoundError, "is no adapter"),
        (lambda f: (f / "adapters.safetensors").unlink(), ModelNotFoundError, "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("{"), CorruptModelError, "config"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), CorruptModelError, "no scale"),
        (
            lambda f: (f / "adapter_config.json").write_text('{"fine_tune_type": "dora"}'),
            UnsupportedModelError,
            "only LoRA",
        ),
        (
            lambda f: save_file({"x": np.zeros(1, np.float32)}, f / "adapters.safetensors"),
            CorruptModelError,
            "no pairs",
        ),
        (
            lambda f: save_file(
                {"x.lora_a": np.zeros((1, 1), np.float32)}, f / "adapters.safetensors"
            ),
            CorruptModelError,
            "without its pair",
        ),
    ],
)
def test_a_broken_adapter_is_named(
    toy_folder: Path, tmp_path: Path, spoil: Any, error: type[Exception], message: str
) -> None:
    folder = write_adapter(tmp_path / "adapter", matrices(toy_folder), "mlx-lm")
    spoil(folder)
    with pytest.raises(error, match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"model.layers.7.mlp.up_proj": ((64, 2), (2, 96))}, "no linear layer model.layers.7"),
        ({"model.embed_tokens": ((64, 2), (2, 96))}, "no linear layer"),
        ({"model.layers.0.mlp.up_proj": ((64, 2), (3, 96))}, "do not fit"),
        ({"model.layers.0.mlp.up_proj": ((60, 2), (2, 96))}, "do not fit"),
        ({"model.layers.0.mlp.up_proj": ((64, 2), (2, 97))}, "do not fit"),
        ({"model.layers.0.mlp.up_proj": ((3, 64, 2), (3, 2, 96))}, "do not fit"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    toy_folder: Path, tmp_path: Path, pairs: Any, message: str
) -> None:
    arrays = {n: tuple(np.zeros(s, np.float32) for s in shapes) for n, shapes in pairs.items()}
    folder = write_adapter(tmp_path / "adapter", arrays, "mlx-lm")  # type: ignore[arg-type]
    with pytest.raises(CorruptModelError, match=message):
        with_adapter(load(str(toy_folder)), read_adapter(folder), "x")
