"""The machine as the package sees it, with other machines put in its place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx import machine
from sgl_mlx.errors import BackendError
from sgl_mlx.models.loader import load
from sgl_mlx.models.memory import available_bytes
from tests.darwin import LACKING, MACS, NOT_SIMULATED, become


def no_device() -> None:
    raise RuntimeError("[metal::Device] No Metal device available")


def test_a_mac_without_a_gpu_has_no_facts_and_loads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx, "device_info", no_device)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert machine.device_info() == {}
    assert machine.recommended_bytes() is None
    assert not machine.has_metal()
    assert available_bytes() > 0
    with pytest.raises(BackendError, match="virtual machine needs a paravirtual one"):
        load("smollm2", offline=True)


@pytest.mark.parametrize("name", sorted(MACS))
def test_a_simulated_mac_is_one_until_it_is_undone(name: str, tmp_path: Path) -> None:
    before = machine.system(), os.sched_getaffinity if hasattr(os, "sched_getaffinity") else None
    with pytest.MonkeyPatch.context() as patch:
        become(MACS[name], patch, tmp_path)
        assert machine.on_mac()
        assert machine.on_gpu()
        assert machine.has_metal()
        assert machine.recommended_bytes() == MACS[name].recommended
        assert available_bytes() <= MACS[name].recommended
        assert not any(hasattr(os, lacking) for lacking in LACKING)
    assert before[0] == machine.system()
    assert before[1] == getattr(os, "sched_getaffinity", None)


def test_the_system_is_known_without_mlx() -> None:
    code = "import sys; from sgl_mlx import machine; print(machine.system(), 'mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [sys.platform, "False"]


def test_the_package_asks_for_the_system_in_one_place_alone() -> None:
    root = Path(__file__).parent.parent
    asking = ("sys.platform", "platform.system() ==", "mx.default_device() ==", "mx.device_info")
    found = {
        file.relative_to(root).as_posix()
        for folder in ("sgl_mlx", "models", "cli", "metal_kernels", "cpu_kernels", "benchmarks")
        for file in (root / folder).rglob("*.py")
        if any(words in file.read_text("utf-8") for words in asking)
    }
    assert found == {"sgl_mlx/machine.py"}


def test_what_cannot_be_simulated_is_a_test_with_a_reason() -> None:
    root = Path(__file__).parent.parent
    for beginning, reason in NOT_SIMULATED.items():
        file, _, name = beginning.partition("::")
        assert f"def {name}" in (root / file).read_text("utf-8")
        assert reason


def test_the_embedded_model_is_opened_in_float32_wherever_answers_are_compared() -> None:
    tests = Path(__file__).parent
    found = {
        file.relative_to(tests).as_posix()
        for file in tests.rglob("*.py")
        if re.search(r"\bEngine\(\s*\"smollm2\"", file.read_text("utf-8"))
    }
    refused = "runtime/speculation/test_model_drafts.py"  # before anything is loaded
    assert found == {"embedded.py", refused}, "open it by `tests.embedded.open_embedded`"


def test_tests_multiply_float32_in_all_its_digits() -> None:
    assert os.environ["MLX_ENABLE_TF32"] == "0"
