"""A Mac in place of this machine: `pytest --as-darwin m2`, for what the package decides by it.

The package then takes the system for macOS and MLX's device for a GPU, finds no CPU kernels, and
reads the device and memory of that Mac. Names of `os` that macOS lacks are gone, files of `/proc`
cannot be opened by the package, and the folder for temporary files is reached over a link, as /tmp
is on a Mac.

MLX itself still computes on Linux's CPU. There is Metal, but all kernels fail their self-test, as
none can be compiled. The embedded model is in float32: in half precision a sentence takes minutes.
Processes that tests start are not simulated.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx import machine

GIB = 2**30
EMBEDDED = "smollm2"
LACKING = ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "memfd_create", "pidfd_open")
"""Names that `os` has on Linux and not on macOS."""

NOT_SIMULATED = {
    "tests/runtime/disk/test_open.py::test_another_process_reuses_what_is_cached": (
        "the other process loads the model as on this machine"
    ),
}
"""Tests that cannot be simulated, by the beginning of their id, with the reason."""

LINUX_ONLY = (
    "tests/benchmarks/micro/test_recurrent.py",
    "tests/benchmarks/peers/test_tied.py",
    "tests/cli/bench/test_serve_bench.py::test_interrupted_it_ends_its_servers",
    "tests/cli/bench/test_suite.py",
    "tests/cli/test_serve_several.py::test_a_model_that_was_closed_leaves_no_memory_behind",
    "tests/cpu_kernels/",
    "tests/models/test_cpu_functions.py",
    "tests/models/test_cpu_layers.py",
    "tests/models/test_info.py::test_layers_that_no_kernel_multiplies_count_as_float32_alone",
    "tests/models/test_latents.py::test_matrices_packed_for_the_cpu_kernels_serve_too",
    "tests/models/test_streams.py",
    "tests/runtime/attention/test_without_kernels.py",
    "tests/runtime/ranks/test_hosts.py",
    "tests/runtime/disk/test_kills.py::test_kills_and_restarts",
    "tests/runtime/test_mla.py::test_the_cpu_kernels_read_values_inside_keys",
    "tests/runtime/test_on_cpu_kernels.py",
    "tests/test_blas.py",
)
"""Beginnings of the ids of tests that may be skipped on a Mac because they need Linux.

Any other such skip is a failure, with or without `--forbid-skips`.
"""

SET_UP = pytest.StashKey[ExitStack]()


@dataclass(frozen=True)
class Mac:
    """A Mac's chip, and its memory in bytes."""

    chip: str
    architecture: str
    memory: int
    recommended: int

    def device_info(self) -> dict[str, Any]:
        """Return the facts in the shape of MLX's on Metal."""
        return {
            "device_name": self.chip,
            "architecture": self.architecture,
            "memory_size": self.memory,
            "max_recommended_working_set_size": self.recommended,
            "max_buffer_length": self.recommended * 3 // 4,
            "resource_limit": 499_000,
        }


MACS = {
    "m2": Mac("Apple M2", "applegpu_g14g", 16 * GIB, 16 * GIB * 2 // 3),
    # what the hosted runners of GitHub's macOS 15 show
    "paravirtual": Mac("Apple Paravirtual device", "air64_v27", int(7.5e9), int(5e9)),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--as-darwin", choices=sorted(MACS), help="run as if this machine were that Mac"
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--as-darwin")
    if name is not None:
        stack = config.stash[SET_UP] = ExitStack()
        scratch = tempfile.TemporaryDirectory(prefix="darwin-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(scratch))
        become(MACS[name], stack.enter_context(pytest.MonkeyPatch.context()), folder)


@pytest.hookimpl(trylast=True)  # the last line of the run still asks for the system
def pytest_unconfigure(config: pytest.Config) -> None:
    if SET_UP in config.stash:
        config.stash[SET_UP].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--as-darwin") is None:
        return
    for item in items:
        for beginning, reason in NOT_SIMULATED.items():
            if item.nodeid.startswith(beginning):
                item.add_marker(pytest.mark.skip(reason=f"not simulated: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and machine.on_mac():
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if "Linux" in reason and not report.nodeid.startswith(LINUX_ONLY):
            report.outcome = "failed"
            report.longrepr = f"{reason}: not in LINUX_ONLY of tests/darwin.py"
    return report


def pytest_report_header(config: pytest.Config) -> str | None:
    name = config.getoption("--as-darwin")
    return f"simulated: {MACS[name]}" if name else None


def become(mac: Mac, patch: pytest.MonkeyPatch, scratch: Path) -> None:
    """Put a Mac in place of this machine, until `patch` is undone."""
    import mlx.core as mx  # after the BLAS, which conftest loads
    import psutil

    from sgl_mlx.metal_kernels import tune, verdicts
    from sgl_mlx.models import loader

    cache_folder = verdicts.cache_folder
    resolve_dtype = loader._resolve_dtype

    def dtype_of(asked: str | None) -> str | None:
        slow = asked is None and sys._getframe(1).f_locals["name"] == EMBEDDED
        return resolve_dtype("float32" if slow else asked)

    def kernels_folder() -> Path:
        return cache_folder() if "XDG_CACHE_HOME" in os.environ else scratch / "kernels"

    memory = psutil.virtual_memory()._replace(total=mac.memory, available=mac.memory * 7 // 10)
    patch.setattr(machine, "system", lambda: "darwin")
    patch.setattr(machine, "on_gpu", lambda: True)
    patch.setattr(loader, "_resolve_dtype", dtype_of)
    patch.setattr(mx, "device_info", mac.device_info)
    patch.setattr(mx.metal, "is_available", lambda: True)
    for module in (tune, verdicts):
        patch.setattr(module, "cache_folder", kernels_folder)
    patch.setattr(psutil, "virtual_memory", lambda: memory)
    for name in LACKING:
        patch.delattr(os, name, raising=False)
    (scratch / "private").mkdir()
    (scratch / "link").symlink_to("private")
    patch.setattr(tempfile, "tempdir", str(scratch / "link"))
    sys.addaudithook(_Proc())


class _Proc:
    """Refuses files of /proc to the package on a simulated Mac; audit hooks cannot be undone."""

    def __init__(self) -> None:
        self._folder = str(Path(__file__).parent.parent)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or not str(args[0]).startswith("/proc/") or not machine.on_mac():
            return
        frame = sys._getframe(1)
        while frame is not None and "pathlib" in frame.f_code.co_filename:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None and self._is_ours(frame.f_code.co_filename):
            raise FileNotFoundError(2, "there is no /proc on a Mac", str(args[0]))

    def _is_ours(self, file: str) -> bool:
        return file.startswith(self._folder) and not re.search(r"/(tests|\.venv)/", file)
