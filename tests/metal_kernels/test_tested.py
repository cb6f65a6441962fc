"""A kernel is used only after it was seen to be right; one that is wrong turns off itself alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import reference, tested
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.metal_kernels.verdicts import VerdictFile

OPTIONS = AttentionOptions(0.125)
CASE = Case("extend", 4, 2, 64, mx.float32)
CASES = [CASE, replace(CASE, work="decode"), replace(CASE, window=9)]
LOG = "program_source:3: error: no such function\n  exp3(x)\n  ^"


class Broken:
    """A factory whose kernels do not compile, or answer with a constant."""

    def __init__(self, answer: float | None) -> None:
        self.answer = answer

    def __call__(self, **_: Any) -> Any:
        return self.launch

    def launch(
        self, output_shapes: Sequence[Any], output_dtypes: Sequence[Any], **_: Any
    ) -> list[mx.array]:
        if self.answer is None:
            raise RuntimeError(LOG)
        return [
            mx.full(shape, self.answer, dtype)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]


def extend_inputs() -> ExtendInputs:
    q, k, v = (mx.random.normal((5, heads, 64)) for heads in (4, 2, 2))
    pool = PoolLayer(mx.random.normal((9, 2, 64)), mx.random.normal((9, 2, 64)))
    return ExtendInputs(q, k, v, pool, ExtendPlan([ExtendRow([3, 1], 5)]), OPTIONS)


def decode_inputs() -> DecodeInputs:
    q, k, v = mx.random.normal((1, 4, 64)), *(mx.random.normal((1, 3, 2, 64)) for _ in "kv")
    pool = PoolLayer(mx.random.normal((9, 2, 64)), mx.random.normal((9, 2, 64)))
    return DecodeInputs(q, k, v, 2, pool, DecodePlan([[4, 2]], width=3), OPTIONS)


@pytest.mark.parametrize("answer", [None, 0.0, float("nan")], ids=["text", "zeros", "nan"])
@pytest.mark.parametrize("inputs", [extend_inputs, decode_inputs])
def test_a_kernel_that_is_refused_or_wrong_is_not_taken(inputs: Any, answer: float | None) -> None:
    kernels = TestedKernels(Kernels(Broken(answer)))
    assert [kernels.takes(inputs()) for _ in range(3)] == [False] * 3
    assert kernels.failed([Case.of(inputs())])
    assert len(kernels.verdicts) == 1, "it is tested once"


@pytest.mark.parametrize("inputs", [extend_inputs, decode_inputs])
def test_by_force_it_is_an_error(inputs: Any) -> None:
    with pytest.raises(KernelError, match=r"heads=4.*no such function"):
        TestedKernels(Kernels(Broken(None)), force=True).takes(inputs())


def test_a_kernel_that_passes_its_self_test_computes(kernels: Kernels) -> None:
    guarded = TestedKernels(kernels, force=True)
    extend, decode = extend_inputs(), decode_inputs()
    assert guarded.takes(extend)
    assert guarded.takes(decode)
    right = reference.extend_attention(extend), reference.decode_attention(decode)
    assert mx.allclose(guarded.extend(extend), right[0], atol=1e-5)
    assert mx.allclose(guarded.decoder(decode)(decode), right[1], atol=1e-5)
    assert not guarded.failed([Case.of(extend), Case.of(decode)])


def wrong_but_for(*good: Case) -> Any:
    def compare(case: Case, _: Kernels) -> tuple[bool, str]:
        return case in good, "differs by 0.3 at most"

    return compare


def test_one_bad_case_turns_off_that_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "compare", wrong_but_for(*CASES[:2]))
    kernels = TestedKernels(Kernels())
    kernels.learn(CASES)
    assert [kernels.failed([case]) for case in CASES] == [False, False, True]
    assert kernels.failed(CASES)
    assert not kernels.failed([replace(CASE, dim=128)]), "not known to be wrong"


def test_a_model_is_told_of_in_one_line_that_names_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = TestedKernels(Kernels(Broken(None)), VerdictFile(tmp_path))
    with caplog.at_level(logging.INFO):
        kernels.learn([*CASES, *CASES])
        assert not kernels.takes(extend_inputs())
    (record,) = caplog.records
    told = record.getMessage()
    assert "\n" not in told
    assert told.startswith("3 of this model's 3 Metal kernels are not used")
    log = VerdictFile(tmp_path).log
    assert str(log) in told
    assert log.read_text().count(LOG) == 3, "with all that the compiler said"


def test_verdicts_are_kept_for_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tested, "compare", wrong_but_for(CASE))
    TestedKernels(Kernels(), VerdictFile(tmp_path)).learn(CASES[:2])
    asked: list[Case] = []

    def compare(case: Case, _: Kernels) -> tuple[bool, str]:
        asked.append(case)
        return True, "agrees"

    monkeypatch.setattr(tested, "compare", compare)
    again = TestedKernels(Kernels(), VerdictFile(tmp_path))
    again.learn(CASES)
    assert asked == [CASES[2]], "the others are known"
    assert [again.failed([case]) for case in CASES] == [False, True, False]
    assert len(VerdictFile(tmp_path).load()) == 3
    monkeypatch.setattr(tested, "compare", wrong_but_for())
    forced = TestedKernels(Kernels(), VerdictFile(tmp_path), force=True)
    with pytest.raises(KernelError, match="differs by"):
        forced.learn(CASES)


def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kernels = TestedKernels(Kernels(Broken(0.0)), VerdictFile(tmp_path / "file"))
    kernels.learn(CASES)
    assert kernels.failed(CASES)
