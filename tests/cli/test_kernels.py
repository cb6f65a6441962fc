"""`sgl-mlx kernels` with and without Metal; the emulator stands in for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import Result

from sgl_mlx.cpu_kernels import build as cpu_build
from sgl_mlx.metal_kernels import build, model_heads, records, tune
from sgl_mlx.metal_kernels.dispatch import RULES, CutOvers
from tests.metal_kernels.emulator import Emulator, needs_compiler

Sgl = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def without_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)


def with_metal(monkeypatch: pytest.MonkeyPatch, factory: Any) -> None:
    """A machine whose Metal is `factory`."""

    class Kernels(build.Kernels):
        def __init__(self) -> None:
            super().__init__(factory)

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(build, "Kernels", Kernels)


def wrong(**_: Any) -> Any:
    def launch(output_shapes: Any, output_dtypes: Any, **_: Any) -> list[mx.array]:
        return [mx.zeros(*each) for each in zip(output_shapes, output_dtypes, strict=True)]

    return launch


def test_list_names_every_kernel_and_says_what_is_known_here(sgl: Sgl) -> None:
    shown = sgl("kernels", "list").output
    assert all(name in shown for name in build.SPECS)
    assert all(f"{rule.path.value:<24} {rule.when}" in shown for rule in RULES)
    assert shown.count("not tuned") == len(model_heads.MODELS)
    facts = json.loads(sgl("kernels", "list", "--json").output)
    assert facts["metal"] is mx.metal.is_available()
    assert facts["kernels"] == records.kernels_hash()


@pytest.mark.usefixtures("without_metal")
@pytest.mark.parametrize("command", ["selftest", "tune"])
def test_without_metal_it_says_what_can_be_done(sgl: Sgl, command: str) -> None:
    done = sgl("kernels", command)
    assert done.exit_code == 1
    assert "make test-kernels" in done.output


@needs_compiler
def test_selftest_passes_where_all_agree(sgl: Sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    with_metal(monkeypatch, Emulator().metal_kernel)
    done = sgl("kernels", "selftest", "--model", "smollm2-135m")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "2 of 2 specialisations agree with plain MLX"


def test_selftest_fails_where_one_is_wrong(sgl: Sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    with_metal(monkeypatch, wrong)
    done = sgl("kernels", "selftest", "--model", "smollm2-135m", "--json")
    assert done.exit_code == 1
    assert [row["good"] for row in json.loads(done.stdout)] == [False, False]
    told = sgl("kernels", "selftest", "--model", "smollm2-135m").output.splitlines()[-1]
    log = Path(told.removeprefix("details: ")).read_text()
    assert log.count("== decode(heads=9") == 2, "each run adds to the log"


def test_list_shows_the_verdicts_that_are_kept(sgl: Sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(sgl("kernels", "list", "--json").output)["verdicts"] == []
    with_metal(monkeypatch, wrong)
    sgl("kernels", "selftest", "--model", "smollm2-135m")
    assert sgl("kernels", "list").output.count("FAIL ") == 2
    kept = json.loads(sgl("kernels", "list", "--json").output)["verdicts"]
    assert [row["good"] for row in kept] == [False, False]


def test_tune_keeps_what_list_then_shows(sgl: Sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    with_metal(monkeypatch, wrong)
    found = CutOvers(((0, 77),))
    monkeypatch.setattr(tune.Sweep, "run", lambda self: found)
    done = sgl("kernels", "tune", "--model", "smollm2-135m")
    assert done.exit_code == 0, done.output
    assert json.loads(sgl("kernels", "list", "--json").output)["cut_overs"] == {
        **dict.fromkeys(model_heads.MODELS),
        "smollm2-135m": str(found),
    }


@pytest.mark.parametrize("command", ["selftest", "tune"])
def test_an_unknown_model_is_refused_with_those_known(
    sgl: Sgl, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    with_metal(monkeypatch, wrong)
    done = sgl("kernels", command, "--model", "gpt-9")
    assert done.exit_code == 2
    assert all(name in done.output.replace("\n", " ") for name in model_heads.MODELS)


@pytest.mark.parametrize("without_amx", [False, True])
def test_build_leaves_amx_out_when_asked_to(
    sgl: Sgl, monkeypatch: pytest.MonkeyPatch, without_amx: bool
) -> None:
    asked: list[bool] = []

    def compile_kernels(amx: bool = True) -> Path:
        asked.append(amx)
        return Path("kernels.so")

    monkeypatch.setattr(cpu_build, "compile_kernels", compile_kernels)
    monkeypatch.setattr(cpu_build, "compiled_for", lambda: "AVX2")
    done = sgl("kernels", "build", "--json", *["--without-amx"] * without_amx)
    assert json.loads(done.stdout)["instruction_sets"] == "AVX2"
    assert asked == [not without_amx]
