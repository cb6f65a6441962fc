"""Layers of one model go to the kernels or to plain MLX, each by its own widths."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.metal_kernels import tested
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS, CutOvers
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.models import cpu_math
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime.attention import open as opened
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.kernels import KernelEpoch, pool_fits
from sgl_mlx.runtime.attention.select import AttentionPaths, layer_cases
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row
from tests.metal_kernels.emulator import Emulator, needs_compiler
from tests.models.toy import toy_config, toy_model

SLOTS = 80


def model(sliding: int, full: int) -> Adapter:
    """A toy Gemma 4 of two layers, a window on the first, with heads of these widths."""
    config = toy_config("gemma4_text") | {
        **{"head_dim": sliding, "global_head_dim": full, "num_hidden_layers": 2},
        **{"num_kv_shared_layers": 0, "sliding_window": 24},
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return Adapter(toy_model("gemma4_text", config))


def row(name: str, prefix: range, slots: range, tokens: int) -> Row:
    return Row(
        id=name,
        tokens=tuple(range(3, 3 + tokens)),
        prefix=tuple(prefix),
        slots=tuple(slots),
        position=len(prefix),
        sample=True,
        params=SamplingParams(temperature=0),
    )


def run(adapter: Adapter, kernels: TestedKernels | None) -> list[dict[str, int]]:
    """The tokens of a prefill, of forks and chunks over it, and of three decode steps."""
    pool = KVPool(adapter.layers, SLOTS, adapter.dtype)
    runner = ModelRunner(adapter, pool, frozenset(), AttentionPaths(pool, kernels, ALWAYS_OURS))
    prefix = range(1, 67, 2)
    forks = tuple(row(n, prefix, range(at, at + 4), 1) for n, at in (("a", 68), ("b", 72)))
    steps = [
        runner.run(Extend((row("a", range(0), prefix, len(prefix)),))),
        runner.run(Extend((*forks, row("c", prefix, range(76, 79), 3)))),
        runner.run(Decode(("a", "b"), 4, ahead=False, opening=forks)),
        *(runner.run(Decode(("a", "b"), 4, ahead=False)) for _ in range(2)),
    ]
    return [dict(step.tokens) for step in steps]


def count_questions(kernels: TestedKernels, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that gets an element whenever the verdict on a layer is asked for."""
    asked: list[object] = []
    takes = kernels.takes

    def counted(inputs: ExtendInputs | DecodeInputs) -> bool:
        asked.append(inputs)
        return takes(inputs)

    monkeypatch.setattr(kernels, "takes", counted)
    return asked


@needs_compiler
@pytest.mark.parametrize(
    ("sliding", "full", "taken"),
    [(64, 24, {64}), (24, 64, {64}), (64, 96, {64, 96}), (24, 40, set())],
)
def test_only_layers_of_fitting_widths_run_on_kernels_and_tokens_are_those_of_plain_mlx(
    sliding: int, full: int, taken: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, emulator = model(sliding, full), Emulator()
    kernels = TestedKernels(Kernels(emulator.metal_kernel), force=True)
    asked = count_questions(kernels, monkeypatch)
    assert run(adapter, kernels) == run(adapter, None)
    decoded = [inputs for inputs in asked if isinstance(inputs, DecodeInputs)]
    assert len(decoded) == 2 * len(taken), "once an epoch, of one step and of three"
    assert {case.dim for case in kernels.verdicts} == taken
    assert bool(emulator.launches) == bool(taken)
    assert pool_fits(KVPool(adapter.layers, 9, adapter.dtype), kernels) == bool(taken)


def test_a_models_cases_are_those_of_its_layers() -> None:
    adapter = model(64, 24)
    pool = KVPool(adapter.layers, 9, adapter.dtype, kv_bits=8)
    heads, kv_heads = adapter.attentions[0].heads, adapter.layers[0].heads
    extend = Case("extend", heads, kv_heads, 64, mx.float32, quantized=True, window=24)
    assert layer_cases(adapter.attentions, pool) == {0: [extend, replace(extend, work="decode")]}


@pytest.mark.parametrize("good", [True, False])
def test_loading_judges_the_models_kernels_before_it_measures_them(
    good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def compare(case: Case, _: Kernels) -> tuple[bool, str]:
        happened.append(case.work)
        return good, "seen"

    def cut_overs(case: Case, asked: str) -> CutOvers:
        happened.append("measured")
        return CutOvers()

    kernels = TestedKernels(Kernels())
    monkeypatch.setattr(tested, "compare", compare)
    monkeypatch.setattr(cpu_math, "on_cpu", lambda: False)
    monkeypatch.setattr(opened, "open_kernels", lambda asked: kernels)
    monkeypatch.setattr(opened, "cut_overs", cut_overs)
    adapter = model(64, 24)
    paths = opened.attention_paths(adapter, KVPool(adapter.layers, 9, adapter.dtype), share=True)
    assert happened == ["extend", "decode", *["measured"] * good]
    rows = [row(n, range(1, 9, 2), range(9, 10), 1) for n in "ab"]
    assert isinstance(paths.epoch(rows, 1), KernelEpoch if good else Epoch)


@pytest.mark.parametrize(
    ("sliding", "full", "wrong", "copies"),
    [
        (64, 96, None, False),
        (64, 24, None, True),
        (64, 96, ("decode", 96), True),
        (64, 96, ("extend", 96), False),
    ],
    ids=[
        "all on kernels",
        "one layer too narrow",
        "a decode kernel wrong",
        "an extend kernel wrong",
    ],
)
def test_prefixes_are_copied_if_any_layer_decodes_without_a_kernel(
    sliding: int,
    full: int,
    wrong: tuple[str, int] | None,
    copies: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tested, "compare", lambda case, _: ((case.work, case.dim) != wrong, ""))
    adapter, kernels = model(sliding, full), TestedKernels(Kernels())
    pool = KVPool(adapter.layers, 9, adapter.dtype)
    cases = layer_cases(adapter.attentions, pool)
    kernels.learn([case for mine in cases.values() for case in mine])
    assert AttentionPaths(pool, kernels, cases=cases).copies is copies
