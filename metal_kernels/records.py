"""Description of this machine, for which tuning and self-test results are cached on disk."""

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
    """Describe this machine: chip, system, version of MLX, and hash of the kernels' sources."""
    return {
        "chip": str(device_info().get("device_name", platform.machine())),
        "system": f"{platform.system()} {platform.release()}",
        "mlx": version("mlx"),
        "kernels": kernels_hash(),
    }


def kernels_hash() -> str:
    """Hash the sources of all Metal kernels."""
    return hashlib.sha256("".join(_texts()).encode()).hexdigest()[:16]


def key_of(*of: str) -> str:
    """Return a hash of this machine's description and the strings `of`, for the name of a file."""
    key = json.dumps([*of, machine()], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder in which tuning and self-test results are cached; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sgl-mlx" / "kernels"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically, and make its folder if needed.

    Raises:
        OSError: the folder cannot be made or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1), "utf-8")
    draft.replace(file)


def _texts() -> Iterator[str]:
    yield read("attention.h")
    for spec in SPECS.values():
        yield spec.source
