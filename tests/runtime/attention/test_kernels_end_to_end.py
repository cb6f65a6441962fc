"""A toy model whose attention runs in our kernels, the emulator standing in for Metal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.metal_kernels import tested
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.runtime.attention.select import AttentionPaths, layer_cases
from sgl_mlx.runtime.engine import Engine
from tests.metal_kernels.emulator import Emulator, needs_compiler
from tests.models.conftest import LLAMA, write_folder
from tests.models.toy import toy_model
from tests.runtime.checks import assert_holds_nothing

OPTIONS: dict[str, Any] = {"max_total_tokens": 420, "chunked_prefill_size": 48}
"""Small: the shared prefix is prefilled in chunks, and not all rows fit to their end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, one of them with a window; heads as wide as the kernels want them."""
    config = {
        **LLAMA.full_config(),
        **{"head_dim": 64, "num_hidden_layers": 2, "sliding_window": 40},
        "layer_types": ["sliding_attention", "full_attention"],
    }
    weights = dict(tree_flatten(toy_model("llama", config).parameters()))
    arrays = {name: np.array(x) for name, x in weights.items()}
    return write_folder(tmp_path_factory.mktemp("models") / "windowed", config, arrays)


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., Engine]]:
    """`opened(emulator=None, **options)`: an engine on plain MLX, or on emulated kernels."""
    engines: list[Engine] = []

    def make(emulator: Emulator | None = None, force: bool = True, **options: Any) -> Engine:
        engine = Engine(str(folder), **{**OPTIONS, **options})
        engines.append(engine)
        if emulator is not None:
            kernels = TestedKernels(Kernels(emulator.metal_kernel), force=force)
            runner = engine._loop.model.runner
            pool = runner.paths.pool
            cases = layer_cases(runner._model.attentions, pool)
            runner.paths = AttentionPaths(pool, kernels, ALWAYS_OURS, cases=cases)
        return engine

    yield make
    for engine in engines:
        engine.shutdown()


def forks(engine: Engine) -> list[list[int]]:
    """64 greedy tokens of five branches of one prefix, and of a prompt of its own."""
    prefix = [3 + i * 7 % 200 for i in range(120)]
    prompts = [[*prefix, *[60 + i] * (1 + 4 * i)] for i in range(5)] + [[9, 8, 7]]
    params = {"max_new_tokens": 64, "ignore_eos": True, "temperature": 0}
    return [a["output_ids"] for a in engine.generate(input_ids=prompts, sampling_params=params)]


@needs_compiler
@pytest.mark.parametrize("kv_bits", [None, 8])
def test_forks_chunks_preemption_and_a_window_answer_as_in_plain_mlx(
    opened: Callable[..., Engine], kv_bits: int | None
) -> None:
    emulator = Emulator()
    emulated = opened(emulator, kv_bits=kv_bits)
    assert forks(emulated) == forks(opened(kv_bits=kv_bits))
    assert emulated.get_server_info()["stats"]["preemptions"] > 0
    assert_holds_nothing(emulated)
    ran = Counter(launch.msl.name for launch in emulator.launches)
    kernels = ("extend_attention", "decode_attention", "shared_attention", "merge_partials")
    assert all(any(kernel in name for name in ran) for kernel in kernels), ran


@needs_compiler
@pytest.mark.parametrize("known", [True, False], ids=["when opened", "when first used"])
@pytest.mark.parametrize("bad", ["extend", "decode"])
def test_a_layer_whose_kernel_is_wrong_is_attended_in_plain_mlx_and_the_others_are_not(
    opened: Callable[..., Engine], bad: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tested.compare

    def compare(case: Case, kernels: Kernels) -> tuple[bool, str]:
        return (False, "wrong") if (case.work, case.window) == (bad, 40) else right(case, kernels)

    monkeypatch.setattr(tested, "compare", compare)
    emulator = Emulator()
    emulated = opened(emulator, force=False)
    paths = emulated._loop.model.runner.paths
    if known:
        paths.kernels.learn([case for cases in paths._cases.values() for case in cases])
    emulator.launches.clear()
    assert forks(emulated) == forks(opened())
    windowed = {kernel: kernel_ran(emulator, kernel, 40) for kernel in ("extend", "decode")}
    assert windowed == {"extend": bad != "extend", "decode": bad != "decode"}
    assert all(kernel_ran(emulator, kernel, 0) for kernel in ("extend", "decode"))


def kernel_ran(emulator: Emulator, kernel: str, window: int) -> bool:
    """True if a kernel ran with this window; no other argument of the toy's is 40."""
    mine = [x.msl.call for x in emulator.launches if f"{kernel}_attention" in x.msl.name]
    return any((" 40," in call) == (window == 40) for call in mine)
