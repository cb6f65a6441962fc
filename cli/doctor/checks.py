"""All checks of `sgl-mlx doctor` in order; those of the GPU and the model are in other files."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from importlib import metadata

from sgl_mlx import machine
from sgl_mlx.blas import load_fast_blas
from sgl_mlx.cli.doctor.check import GIB, Check, checked

LIBRARIES = ("sgl-mlx", "mlx", "mlx-lm", "transformers", "huggingface-hub", "numpy")
_LITTLE = 2 * GIB
"""Free memory in bytes below which a machine is likely to swap, whatever model is loaded."""


def all_checks(model: str | None) -> Iterator[Check]:
    """Run all checks, even after one fails; yield each result as soon as it is known."""
    yield _system()
    yield _versions()
    yield from _blas()  # before mlx is imported, or it would have no effect
    yield from _cpu_kernels()
    yield checked("chip", _chip)
    if machine.on_mac():
        yield from _of_a_mac(model)
    yield checked("memory", _memory)
    yield from _of_the_model(model)


def _of_a_mac(model: str | None) -> Iterator[Check]:
    from sgl_mlx.cli.doctor import metal

    yield checked("Metal", metal.metal)
    yield checked("kernels", metal.kernels)
    yield checked("wired limit", lambda: metal.wired_limit(model))


def _of_the_model(model: str | None) -> Iterator[Check]:
    from sgl_mlx.cli.doctor.model import model_checks  # imports mlx, which comes after the BLAS

    yield from model_checks(model)


def _system() -> Check:
    detail = f"{platform.platform()}, Python {platform.python_version()}"
    release = platform.mac_ver()[0]
    if release and int(release.split(".")[0]) < 14:
        return Check("system", "fail", f"{detail}; MLX needs macOS 14 or newer: update macOS")
    if release and platform.machine() != "arm64":
        remedy = "; MLX needs Apple silicon and a Python for it (arm64), not one under Rosetta"
        return Check("system", "fail", detail + remedy)
    return Check("system", "ok", detail)


def _versions() -> Check:
    try:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    except metadata.PackageNotFoundError as error:
        return Check("versions", "fail", f"{error.name} is not installed: pip install {error.name}")
    return Check("versions", "ok", found)


def _blas() -> Iterator[Check]:
    """Check for a fast BLAS library, which only Linux needs; yields nothing elsewhere."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        blas = load_fast_blas()
    if blas or caught:
        detail = "; ".join(str(w.message) for w in caught) or (blas.library if blas else "")
        yield Check("BLAS", "warn" if caught else "ok", detail)


def _cpu_kernels() -> Iterator[Check]:
    """Check the CPU kernels, which only Linux needs; yields nothing on a Mac."""
    if machine.on_mac():
        return
    from sgl_mlx.cpu_kernels.build import load, threads, why_not

    reason, kernels = why_not(), load()
    if kernels is None:
        yield Check("CPU kernels", "warn", reason or "")
        return
    how = "tiles of bfloat16" if kernels.multiplies_tiles() else "vectors"
    yield Check("CPU kernels", "ok", f"compiled; {threads()} threads, products by {how}")


def _chip() -> Check:
    machine.check_device()
    named = machine.device_info().get("device_name")
    name = str(named or platform.processor() or platform.machine())
    device = "GPU" if machine.on_gpu() else "CPU"
    detail = f"{name}, {os.cpu_count()} cores; mlx {metadata.version('mlx')} on the {device}"
    if machine.on_mac() and not machine.on_gpu():
        remedy = "expected the GPU: pip install --force-reinstall mlx"
        return Check("chip", "warn", f"{detail}; {remedy}")
    return Check("chip", "ok", detail)


def _memory() -> Check:
    import psutil

    found = psutil.virtual_memory()
    detail = f"{found.available / GIB:.1f} GiB of {found.total / GIB:.1f} GiB are free"
    if found.available < _LITTLE:
        return Check("memory", "warn", detail + "; close other programs before loading a model")
    return Check("memory", "ok", detail)
