"""The rows of `sgl-mlx doctor`: on this machine, and on Macs put in its place."""

from __future__ import annotations

import json
import platform
import warnings
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest

from sgl_mlx import machine
from sgl_mlx.cli.doctor import checks, model
from sgl_mlx.cli.doctor.check import Check, checked, gib
from sgl_mlx.errors import ModelNotFoundError
from sgl_mlx.models import resolve
from sgl_mlx.models.download import Download
from tests.darwin import GIB, MACS, Mac, become
from tests.models.toy import toy_config

Rows = Mapping[str, Mapping[str, Any]]


@pytest.fixture(autouse=True)
def _fast_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine and the order of imports in this process make of it."""
    monkeypatch.setattr(checks, "load_fast_blas", lambda: None)


def rows(sgl: Any, *args: str) -> Rows:
    return {row["name"]: row for row in json.loads(sgl("doctor", "--json", *args).stdout)}


def test_a_healthy_machine_has_no_failing_row(sgl) -> None:
    result = sgl("doctor", "--json", "--model", "smollm2")
    found = {row["name"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert {"system", "versions", "chip", "memory", "model", "weights", "KV pool"} <= set(found)
    assert "llama, 135 M parameters" in found["model"]["detail"]
    taken = "0.70 GiB" if machine.on_gpu() else "1.41 GiB"
    assert found["KV pool"]["detail"].startswith(f"32,768 tokens in {taken}")
    assert not [row for row in found.values() if row["status"] == "fail"]


def test_rows_are_lines_that_begin_with_their_state(sgl) -> None:
    lines = sgl("doctor").stdout.splitlines()
    assert lines[0].split()[:2] == ["ok", "system"]


def test_a_model_that_is_missing_fails_its_row_alone(sgl) -> None:
    result = sgl("doctor", "--json", "--model", "nowhere")
    found = {row["name"]: row["status"] for row in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert found["model"] == "fail"
    assert found["memory"] == "ok"


def test_a_missing_blas_is_a_warning_with_the_remedy(sgl, monkeypatch) -> None:
    monkeypatch.setattr(
        checks, "load_fast_blas", lambda: warnings.warn("install one", stacklevel=1)
    )
    row = rows(sgl)["BLAS"]
    assert (row["status"], row["detail"]) == ("warn", "install one")


def test_a_missing_library_names_its_remedy(monkeypatch) -> None:
    monkeypatch.setattr(checks, "LIBRARIES", ("no-such-library",))
    row = next(row for row in checks.all_checks("smollm2") if row.name == "versions")
    assert (row.status, "pip install no-such-library" in row.detail) == ("fail", True)


@pytest.mark.parametrize("error", [ModelNotFoundError("gone"), RuntimeError("gone")])
def test_a_check_that_raises_becomes_a_failing_row(error: Exception) -> None:
    def broken() -> Check:
        raise error

    assert checked("x", broken) == Check("x", "fail", "gone")


# -- a model that is on the hub -------------------------------------------------------------------

LLAMA_3B = {
    "model_type": "llama",
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 3072,
    "max_position_embeddings": 131072,
    **{"intermediate_size": 8192, "vocab_size": 128256, "rms_norm_eps": 1e-5},
}


@pytest.mark.parametrize(("weights", "status"), [(1_800_000_000, "ok"), (400 * GIB, "fail")])
def test_what_a_model_on_the_hub_would_need_is_told_before_it_is_fetched(
    sgl, monkeypatch: pytest.MonkeyPatch, weights: int, status: str
) -> None:
    found = Download("org/big-4bit", "a" * 40, ("w",), weights + 9, weights, Path("cache"))
    monkeypatch.setattr("sgl_mlx.cli.doctor.model.is_offline", lambda: False)
    monkeypatch.setattr("sgl_mlx.cli.doctor.model.look_up", lambda name: (found, LLAMA_3B))
    shown = rows(sgl, "--model", "org/big-4bit")
    assert shown["model"]["status"] == "warn"
    assert "sgl-mlx models pull org/big-4bit" in shown["model"]["detail"]
    assert shown["weights"]["status"] == status
    if status == "ok":
        assert "beside 1.68 GiB of weights" in shown["KV pool"]["detail"]


@pytest.mark.parametrize(
    ("architecture", "token"),
    [("llama", 60 * 2 * (8 + 8)), ("deepseek_v3", 60 * (16 + 8)), ("mamba2", 0)],
)
def test_a_pool_is_sized_by_what_the_architecture_keeps(
    architecture: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"max_position_embeddings": 4096, "num_hidden_layers": 60}
    config = {**toy_config(architecture), **layers}
    monkeypatch.setattr(model.memory, "available_bytes", lambda: 2**34)
    row = model.pool_row(model.Needs("org/toy", 0, config))
    size = 2 if machine.on_gpu() else 4
    assert row.status == "ok"
    assert row.detail.startswith(f"32,768 tokens in {gib(32768 * token * size)}")


def test_a_configuration_without_its_sizes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    row = model.pool_row(model.Needs("org/toy", 0, {"model_type": "llama"}))
    assert (row.status, "max_position_embeddings" in row.detail) == ("warn", True)


def test_offline_a_model_that_is_not_here_is_not_looked_up(
    sgl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGL_MLX_OFFLINE", "1")
    monkeypatch.setattr(resolve, "plan_download", lambda repo: pytest.fail("asked the hub"))
    row = rows(sgl, "--model", "org/never-fetched")["model"]
    assert (row["status"], "offline mode is on" in row["detail"]) == ("fail", True)


# -- on a Mac -------------------------------------------------------------------------------------


@pytest.fixture(params=sorted(MACS))
def mac(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mac]:
    with pytest.MonkeyPatch.context() as patch:
        become(MACS[request.param], patch, tmp_path)
        yield MACS[request.param]


def test_a_mac_has_rows_for_its_gpu(sgl, mac: Mac) -> None:
    found = rows(sgl, "--model", "smollm2")
    assert list(found)[2:6] == ["chip", "Metal", "kernels", "wired limit"]
    assert mac.chip in found["chip"]["detail"]
    assert mac.architecture in found["Metal"]["detail"]
    assert found["Metal"]["status"] == ("warn" if "Paravirtual" in mac.chip else "ok")
    assert "sgl-mlx kernels selftest" in found["kernels"]["detail"]
    assert "CPU kernels" not in found
    assert found["KV pool"]["detail"].startswith("32,768 tokens in 0.70 GiB")


def test_a_mac_without_a_gpu_fails_its_rows_and_shows_the_others(sgl, mac: Mac) -> None:
    def no_device() -> None:
        raise RuntimeError("[metal::Device] No Metal device available")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "device_info", no_device)
        result = sgl("doctor", "--json", "--model", "smollm2")
    found = {row["name"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert found["chip"]["status"] == found["Metal"]["status"] == "fail"
    assert "virtual machine" in found["Metal"]["detail"]
    assert found["model"]["status"] == "ok"


def test_little_free_memory_is_a_warning(sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    row = rows(sgl)["memory"]
    assert (row["status"], "close other programs" in row["detail"]) == ("warn", True)


System = namedtuple("System", "release machine status told")


@pytest.mark.parametrize(
    "case",
    [
        System("15.1", "arm64", "ok", "Python"),
        System("13.6", "arm64", "fail", "macOS 14 or newer"),
        System("15.1", "x86_64", "fail", "Apple silicon"),
    ],
)
def test_an_old_or_an_intel_mac_is_refused(case: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "mac_ver", lambda: (case.release, ("", "", ""), ""))
    monkeypatch.setattr(platform, "machine", lambda: case.machine)
    row = checks._system()
    assert row.status == case.status
    assert case.told in row.detail
