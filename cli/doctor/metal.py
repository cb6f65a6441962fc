"""Checks of a Mac's GPU: Metal, the kernels' test results, and the memory that it may use."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from sgl_mlx import machine
from sgl_mlx.cli.doctor.check import Check, gib
from sgl_mlx.errors import SglError

_MIB = 2**20
_MOST_OF_MEMORY = 0.85
"""Largest share of memory that the GPU may wire; macOS needs the rest."""


def metal() -> Check:
    """Check that MLX finds a Metal GPU; the detail names the recommended memory limit."""
    machine.check_device()
    info = machine.device_info()
    recommended = machine.recommended_bytes()
    if recommended is None:
        return Check("Metal", "fail", "mlx was built without Metal: pip install --upgrade mlx")
    detail = f"{info.get('architecture', 'unknown')}; {gib(recommended)} are recommended at most"
    if "Paravirtual" in str(info.get("device_name")):
        return Check("Metal", "warn", detail + "; a virtual machine's GPU: its times mean nothing")
    return Check("Metal", "ok", detail)


def kernels() -> Check:
    """Check the saved test results of the Metal kernels; warn if the kernels are switched off."""
    from sgl_mlx.metal_kernels.mode import VARIABLE, mode
    from sgl_mlx.metal_kernels.verdicts import kept_verdicts

    if mode() == "off":
        return Check("kernels", "warn", f"switched off: unset {VARIABLE} to use them")
    return verdicts_row({verdict.case: verdict.good for verdict in kept_verdicts()})


def verdicts_row(verdicts: Mapping[str, bool] | None) -> Check:
    """Return the check "kernels" for the saved test results.

    Args:
        verdicts: for each test case, True if the kernel agreed with plain MLX; empty or None if
            no results are saved.
    """
    if not verdicts:
        detail = "each is tested when a model is loaded; test all now: sgl-mlx kernels selftest"
        return Check("kernels", "ok", detail)
    wrong = [name for name, good in verdicts.items() if not good]
    if not wrong:
        return Check("kernels", "ok", f"all {len(verdicts)} tested agree with plain MLX")
    detail = (
        f"{len(wrong)} of {len(verdicts)} differ from plain MLX and are not used: "
        f"{', '.join(wrong[:3])}{' …' * (len(wrong) > 3)}; please report it: "
        "sgl-mlx doctor --report"
    )
    return Check("kernels", "warn", detail)


def wired_limit(model: str | None) -> Check:
    """Check that macOS lets the GPU hold the model's weights; see `wired_row`."""
    import psutil

    from sgl_mlx.runtime.pool.wired import wiring

    weights = _weights(model)
    wired = 0 if weights is None else wiring(weights).bytes
    return wired_row(_limit(), weights, int(psutil.virtual_memory().total), wired)


def wired_row(limit: int, weights: int | None, total: int, wired: int = 0) -> Check:
    """Return the check "wired limit": the memory that macOS lets the GPU hold. Sizes in bytes.

    Args:
        limit: the limit set on this machine, or the one that Metal recommends.
        weights: size of the model's weights; None if unknown.
        total: memory of the machine.
        wired: size of the weights that an engine keeps resident.
    """
    resident = f"sgl-mlx makes {gib(wired)} resident" if wired else "sgl-mlx makes none resident"
    detail = f"the GPU may hold {gib(limit)}; {resident}"
    if weights is None or weights <= limit:
        return Check("wired limit", "ok", detail)
    most = int(total * _MOST_OF_MEMORY)
    needed = f"{detail}; the weights take {gib(weights)}"
    if weights > most:
        return Check("wired limit", "fail", f"{needed}: choose a smaller or a quantized model")
    remedy = f"allow more until the next restart: sudo sysctl iogpu.wired_limit_mb={most // _MIB}"
    return Check("wired limit", "warn", f"{needed}; {remedy}")


def _limit() -> int:
    """Return the GPU's memory limit in bytes: set by sysctl, else recommended by Metal, else 0."""
    asked = _sysctl("iogpu.wired_limit_mb")
    own = int(asked) * _MIB if asked.isdigit() else 0
    return own or machine.recommended_bytes() or 0


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _weights(model: str | None) -> int | None:
    from sgl_mlx.models.info import estimate_weight_bytes
    from sgl_mlx.models.resolve import resolve

    try:
        path: Path = resolve(model, offline=True)[1]
        return estimate_weight_bytes(path)
    except SglError:
        return None  # the check of the model reports the error
