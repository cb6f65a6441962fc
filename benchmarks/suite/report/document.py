"""The JSON that the suite ends with: comparisons, and all one needs to know to repeat them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sgl_mlx.benchmarks.peers.system import System
from sgl_mlx.benchmarks.suite.compare import Comparison, geometric_means

_PACKAGES = ("sgl-mlx", "mlx", "mlx-lm")


def describe(
    comparisons: Sequence[Comparison],
    scale: float,
    repeats: int,
    command: str,
    systems: Sequence[System],
) -> dict[str, Any]:
    """What `page` and `table` show."""
    return {
        "workloads": [comparison.to_dict() for comparison in comparisons],
        "geomean": geometric_means(comparisons),
        "scale": scale,
        "repeats": repeats,
        "command": command,
        "commit": _commit(),
        "machine": _machine(),
        "versions": {**_versions(), **{s.name: s.version for s in systems if s.version}},
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }


def _processor() -> str:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def _commit() -> str:
    """Of the checkout that this runs from; nothing for an installed package."""
    return _output(
        "git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"
    )


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
