"""Engines on MLA models answer as mlx-lm does with one prompt alone, in few calls of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from sgl_mlx.core import Parallel, SamplingParams, Text
from sgl_mlx.cpu_kernels.attention import CpuAttention
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.runtime.attention.select import AttentionPaths, layer_cases
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.kv import KVPool
from tests.metal_kernels.emulator import Emulator, needs_compiler
from tests.models.conftest import TOKENS, write_folder
from tests.models.test_latents import MLA
from tests.models.toy import toy_configs, toy_model
from tests.patience import PATIENCE
from tests.runtime.checks import assert_holds_nothing

SPARSE = ["deepseek_v32", "glm_moe_dsa", "minimax_m3_vl"]
"""Models with an indexer, which chooses fewer tokens than most prompts here have."""

NEW = 8
GREEDY = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
STORY = [3 + i * 7 % 200 for i in range(200)]
PROMPTS = [STORY[i : i + n] for i, n in enumerate([1, 2, 70, 33, 5, 121])]


class Mla:
    """One architecture's toy on disk, and what mlx-lm says."""

    def __init__(self, architecture: str, folder: Path, **changes: int) -> None:
        config = toy_configs(architecture)[-1]
        for part in (config, config.get("text_config", {})):
            part |= {"vocab_size": len(TOKENS), "num_hidden_layers": 2, **changes}
        self.model = toy_model(architecture, config)
        weights = {k: np.array(v) for k, v in tree_flatten(self.model.parameters())}
        self.folder = write_folder(folder / architecture, config, weights)
        self.alone = cache(self._alone)

    def _alone(self, prompt: tuple[int, ...], new: int = NEW) -> list[int]:
        caches = make_prompt_cache(self.model)
        fed, said = list(prompt), []
        for _ in range(new):
            logits = self.model(mx.array([fed]), cache=caches)
            fed = [int(mx.argmax(logits[0, -1]))]
            said += fed
        return said

    def says(self, prompts: list[list[int]], new: int = NEW) -> list[list[int]]:
        return [self.alone(tuple(prompt), new) for prompt in prompts]


def ask(engine: Engine, prompts: list[list[int]], **params: Any) -> list[list[int]]:
    given = {**GREEDY, **params}
    return [a["output_ids"] for a in engine.generate(input_ids=prompts, sampling_params=given)]


def stats(engine: Engine) -> dict[str, int]:
    found: dict[str, int] = engine.get_server_info()["stats"]
    return found


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def mla(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Mla]:
    """An architecture's toy by its name, made once."""
    folder = tmp_path_factory.mktemp("mla")
    return cache(lambda architecture: Mla(architecture, folder))


@pytest.mark.parametrize("architecture", [*MLA, *SPARSE])
def test_every_way_to_a_prefix_gives_what_mlx_lm_says_alone(
    mla: Callable[[str], Mla], architecture: str, tmp_path: Path
) -> None:
    toy = mla(architecture)
    options = {"max_total_tokens": 330, "disk_cache_dir": str(tmp_path)}
    with Engine(str(toy.folder), **options) as engine:
        assert engine.get_server_info()["attention_path"] == "ragged"
        first = ask(engine, PROMPTS)
        assert first == toy.says(PROMPTS), "uneven lengths in one batch"
        second = [p + said + [9, 4] for p, said in zip(PROMPTS, first, strict=True)][:3]
        assert ask(engine, second) == toy.says(second), "second turn"
        forks = [[*STORY[:60], 5 + i, 90 - i] for i in range(4)]
        assert ask(engine, forks) == toy.says(forks), "forked"
        assert ask(engine, [STORY]) == toy.says([STORY])
        ask(engine, [[250 - t for t in STORY], STORY[50:170]])
        assert ask(engine, [STORY]) == toy.says([STORY]), "restored from disk"
        assert stats(engine)["restored_tokens"] > 0
        assert_holds_nothing(engine)


@pytest.mark.parametrize("architecture", [*MLA, *SPARSE])
def test_a_pool_too_small_for_all_changes_no_answer(
    mla: Callable[[str], Mla], architecture: str
) -> None:
    toy, new = mla(architecture), 40
    prompts = [[5 + i, *STORY[i : i + 17]] for i in range(6)]
    with Engine(str(toy.folder), max_total_tokens=130) as engine:
        assert ask(engine, prompts, max_new_tokens=new) == toy.says(prompts, new)
        assert stats(engine)["preemptions"] > 0
        assert_holds_nothing(engine)


def test_rows_over_a_shared_prefix_take_a_call_of_the_model_for_each_token(
    mla: Callable[[str], Mla],
) -> None:
    toy, new = mla("deepseek_v3"), 24
    rows = [[*STORY[:100], 5 + i, 150 - i] for i in range(32)]
    with Engine(str(toy.folder), max_total_tokens=4000) as engine:
        calls = []
        for _ in range(4):  # a row that is posted after the others' first step costs a call
            engine.flush_cache()
            before = stats(engine)["forward_passes"]
            assert ask(engine, rows, max_new_tokens=new) == toy.says(rows, new)
            calls.append(stats(engine)["forward_passes"] - before)
    assert min(calls) <= 2 + new


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("architecture", ["deepseek_v3", "deepseek_v32"])
def test_the_cpu_kernels_read_values_inside_keys(
    cpu_kernels: ModuleType, tmp_path: Path, architecture: str, kv_bits: int | None
) -> None:
    toy = Mla(architecture, tmp_path, qk_rope_head_dim=16, index_topk=100)
    prompts = [*PROMPTS, *([*STORY[:60], 5 + i] for i in range(4))]
    with Engine(str(toy.folder), max_total_tokens=2000, kv_bits=kv_bits) as engine:
        assert isinstance(engine._model.runner.paths.kernels, CpuAttention)  # type: ignore[attr-defined]
        said = ask(engine, prompts)
    right = toy.says(prompts)
    same = sum(
        a == b for one, two in zip(said, right, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert same == len(prompts) * NEW if kv_bits is None else same > len(prompts) * NEW // 2


@needs_compiler
def test_the_metal_kernels_read_values_inside_keys(tmp_path: Path) -> None:
    toy = Mla("deepseek_v2", tmp_path, kv_lora_rank=512, qk_rope_head_dim=64, num_hidden_layers=1)
    prompts = [[*STORY[:40], 5 + i] for i in range(3)] + [STORY[50:53]]
    turns = [[*prompt, *range(20, 23)] for prompt in prompts]
    kernels = TestedKernels(Kernels(Emulator().metal_kernel), force=True)
    with Engine(str(toy.folder), max_total_tokens=400) as engine:
        runner: Any = engine._model.runner
        cases = layer_cases(runner._model.attentions, runner.paths.pool)
        runner.paths = AttentionPaths(runner.paths.pool, kernels, ALWAYS_OURS, cases=cases)
        assert ask(engine, prompts, max_new_tokens=3) == toy.says(prompts, 3)
        assert ask(engine, turns, max_new_tokens=3) == toy.says(turns, 3)
    assert {case.work for case in kernels.verdicts} == {"extend", "decode"}
    assert all(case.values_in_keys for case in kernels.verdicts)


def test_branches_side_by_side_run_on_latents_too(mla: Callable[[str], Mla]) -> None:
    with Engine(str(mla("deepseek_v2").folder), max_total_tokens=1000) as engine:
        prompt = (Text("a trunk "), Parallel(((Text("one"),), (Text("two"),))), Text(" the end"))
        done = engine.submit(prompt, SamplingParams(**GREEDY)).result(PATIENCE)
        assert len(done[0].token_ids) == NEW


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_the_pool_holds_one_entry_a_token_and_layer(
    mla: Callable[[str], Mla], kv_bits: int | None
) -> None:
    with Engine(str(mla("deepseek_v3").folder), max_total_tokens=99, kv_bits=kv_bits) as engine:
        pool: KVPool = engine._model.runner.paths.pool  # type: ignore[attr-defined]
        entry = 16 + 8
        each = 2 * (entry + 2 if kv_bits else 4 * entry)
        assert pool.nbytes == 100 * each
        assert KVPool.bytes_per_slot(pool.layers, pool.dtype, kv_bits) == each
