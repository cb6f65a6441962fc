"""This machine as far as the kernels depend on it, and the folder of what is kept about it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sgl_mlx.machine import device_info
from sgl_mlx.metal_kernels.build import SPECS, read


def machine() -> dict[str, str]:
    """Describe this machine: chip, system, MLX and the kernels' text."""
    return {
        "chip": str(device_info().get("device_name", platform.machine())),
        "system": f"{platform.system()} {platform.release()}",
        "mlx": version("mlx"),
        "kernels": kernels_hash(),
    }


def kernels_hash() -> str:
    """Hash all text that is compiled."""
    return hashlib.sha256("".join(_texts()).encode()).hexdigest()[:16]


def key_of(*of: str) -> str:
    """Make the key of a file that holds for this machine and `of` alone."""
    key = json.dumps([*of, machine()], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Find the folder in which tuning and verdicts are kept; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sgl-mlx" / "kernels"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a file atomically.

    Raises:
        OSError: the folder cannot be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1), "utf-8")
    draft.replace(file)


def _texts() -> Iterator[str]:
    yield read("attention.h")
    for spec in SPECS.values():
        yield spec.source
