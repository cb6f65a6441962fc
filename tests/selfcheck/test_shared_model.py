"""Engines that share one loaded model answer, whichever of them computes first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx.models import mla
from sgl_mlx.models.loader import load
from sgl_mlx.runtime.engine import Engine
from tests.models.toy import toy_configs, toy_model
from tests.selfcheck.models import KINDS, write_model


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_engine_may_compute_first(kind: str, tmp_path: Path) -> None:
    loaded = load(str(write_model(kind, tmp_path / kind)))
    options = {"max_total_tokens": 500, "chunked_prefill_size": 16, "speculate": "off"}
    params = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    with (
        Engine(model=loaded, **options) as first,
        Engine(model=loaded, **options) as second,
    ):
        found = second.generate("a longer prompt, of two steps", params)
        assert (
            first.generate("a longer prompt, of two steps", params)["output_ids"]
            == found["output_ids"]
        )


def test_matrices_of_latents_are_made_on_the_thread_that_multiplies() -> None:
    model = toy_model("deepseek_v2", toy_configs("deepseek_v2")[-1])
    module = next(m for m in model.modules() if "kv_b_proj" in m)

    def multiplied(matrices: mla.Matrices) -> None:
        heads, keys, _ = matrices
        mx.eval(keys.multiply(mx.zeros((heads, 1, module.qk_nope_head_dim)), False))

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        matrices = one.submit(mla._halves, module).result()
        other.submit(multiplied, matrices).result()
        for pool in (one, other):  # MLX aborts the process if a thread ends with streams open
            pool.submit(mx.clear_streams).result()
