"""JSON document of a run of the suite: comparisons, and what is needed to repeat them.

Page, table and plot are made from this document, after the run or later from a file (`read`).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sgl_mlx import machine
from sgl_mlx.benchmarks.peers.system import System
from sgl_mlx.benchmarks.suite.compare import Comparison, geometric_means
from sgl_mlx.benchmarks.suite.report.figures import Figures
from sgl_mlx.errors import BenchmarkError

_PACKAGES = ("sgl-mlx", "mlx", "mlx-lm")


def describe(
    comparisons: Sequence[Comparison],
    scale: float,
    repeats: int,
    command: str,
    systems: Sequence[System],
) -> dict[str, Any]:
    """Return a suite run as a JSON document that also names the machine, commit and versions.

    Args:
        scale: 1.0 for as many programs as in the SGLang paper, 0.1 for a tenth; see `Size`.
        repeats: how often each measurement was repeated.
        command: the command line that started the run.
        systems: the systems compared, for their versions and instruction sets.
    """
    return {
        "workloads": [comparison.to_dict() for comparison in comparisons],
        "geomean": geometric_means(comparisons),
        "scale": scale,
        "repeats": repeats,
        "command": command,
        "commit": _commit(),
        "machine": _machine(),
        "instruction_sets": {s.name: s.instruction_sets for s in systems if s.instruction_sets},
        "versions": {**_versions(), **{s.name: s.version for s in systems if s.version}},
    }


def read(path: Path) -> dict[str, Any]:
    """Read a document from a file; the document may also be the last line of a run's output.

    Raises:
        BenchmarkError: when the file cannot be read or holds no document of the suite.
    """
    try:
        document = _parsed(path.read_text("utf-8"))
        Figures.of(document)
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{path} holds no document of `sgl-mlx bench suite --json`: {error!r}"
        ) from error
    return document


def _parsed(text: str) -> dict[str, Any]:
    """Parse the whole text as JSON, or else its last line."""
    try:
        document = json.loads(text)
    except ValueError:
        document = json.loads(text.strip().splitlines()[-1])
    if not isinstance(document, dict):
        raise ValueError("the JSON is no object")
    return document


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
    if machine.on_mac():
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def _commit() -> str:
    """Return the git commit of this checkout; "" for an installed package."""
    return _output(
        "git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"
    )


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
