"""The checks of `sgl-mlx doctor`: one function a row."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from sgl_mlx.blas import load_fast_blas
from sgl_mlx.errors import SglError

GIB = 2**30
LIBRARIES = ("sgl-mlx", "mlx", "mlx-lm", "transformers", "huggingface-hub", "numpy")


@dataclass(frozen=True)
class Check:
    """One row; `detail` says what was found and, unless ok, how to mend it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def all_checks(model: str | None) -> Iterator[Check]:
    """Yield every row as soon as it is known; a failing check does not stop the others."""
    yield _system()
    yield _versions()
    yield from _blas()  # before mlx is imported, or it would have no effect
    yield from _kernels()
    yield _checked("chip", _chip)
    yield _checked("memory", _memory)
    yield _checked("model", lambda: _model(model))
    yield _checked("KV pool", lambda: _pool(model))


def _checked(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (SglError, ImportError, OSError, RuntimeError) as error:
        return Check(name, "fail", str(error))


def _system() -> Check:
    return Check("system", "ok", f"{platform.platform()}, Python {platform.python_version()}")


def _versions() -> Check:
    try:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    except metadata.PackageNotFoundError as error:
        return Check("versions", "fail", f"{error.name} is not installed: pip install {error.name}")
    return Check("versions", "ok", found)


def _blas() -> Iterator[Check]:
    """Check for a fast BLAS, which only Linux needs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        blas = load_fast_blas()
    if blas or caught:
        detail = "; ".join(str(w.message) for w in caught) or (blas.library if blas else "")
        yield Check("BLAS", "warn" if caught else "ok", detail)


def _kernels() -> Iterator[Check]:
    """Check the CPU kernels, which only Linux needs."""
    if platform.system() != "Linux":
        return
    from sgl_mlx.cpu_kernels.build import load, threads, why_not

    reason, kernels = why_not(), load()
    if kernels is None:
        yield Check("CPU kernels", "warn", reason or "")
        return
    how = "tiles of bfloat16" if kernels.multiplies_tiles() else "vectors"
    yield Check("CPU kernels", "ok", f"compiled; {threads()} threads, products by {how}")


def _chip() -> Check:
    import mlx.core as mx

    version = metadata.version("mlx")
    name = str(mx.device_info().get("device_name") or platform.processor() or platform.machine())
    detail = f"{name}, {os.cpu_count()} cores; mlx {version} on {mx.default_device()}"
    slow = platform.system() == "Darwin" and mx.default_device() != mx.gpu
    return Check("chip", "warn" if slow else "ok", detail + "; expected the GPU" * slow)


def _memory() -> Check:
    from sgl_mlx.models.memory import available_bytes

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = available_bytes()
    return Check("memory", "ok", f"{free / GIB:.1f} GiB of {total / GIB:.1f} GiB can be used")


def _model(model: str | None) -> Check:
    from sgl_mlx.models.info import describe
    from sgl_mlx.models.resolve import resolve

    name, path = resolve(model, offline=True)
    info = describe(path)
    parameters = f"{info.parameters / 1e6:,.0f} M parameters ({info.quantization})"
    return Check("model", "ok", f"{name}: {info.architecture}, {parameters}, {path}")


def _pool(model: str | None) -> Check:
    """Compute the KV pool the engine would allocate from the model's configuration."""
    import mlx.core as mx

    from sgl_mlx.models.adapter import LayerShape
    from sgl_mlx.models.info import estimate_weight_bytes
    from sgl_mlx.models.memory import available_bytes
    from sgl_mlx.models.resolve import resolve
    from sgl_mlx.runtime.pool.kv import KVPool
    from sgl_mlx.runtime.pool.memory import pool_slots

    path = resolve(model, offline=True)[1]
    on_gpu = mx.default_device() == mx.gpu
    weights = estimate_weight_bytes(path, None if on_gpu else "float32")
    dtype = mx.bfloat16 if on_gpu else mx.float32
    try:
        layers, width, heads, context = _shape(path)
    except KeyError as error:
        return Check("KV pool", "warn", f"the configuration does not tell its size: no {error}")
    shapes = [LayerShape(heads, width, width)] * layers
    slots = pool_slots(None, context, shapes, dtype, available_bytes() - weights)
    taken = slots * KVPool.bytes_per_slot(shapes, dtype)
    detail = f"{slots:,} tokens in {taken / GIB:.2f} GiB, beside {weights / GIB:.2f} GiB of weights"
    return Check("KV pool", "ok", detail)


def _shape(path: Path) -> tuple[int, int, int, int]:
    """Return layers, head width, KV heads and context length of a model."""
    from sgl_mlx.models import safetensors_file
    from sgl_mlx.models.gguf import config as gguf_config
    from sgl_mlx.models.gguf.file import GGUFFile

    folder = path.is_dir()
    config = (
        safetensors_file.read_config(path) if folder else gguf_config.read_config(GGUFFile(path))
    )
    config = config.get("text_config") or config
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    key_heads = config.get("num_key_value_heads") or heads
    return config["num_hidden_layers"], width, key_heads, config["max_position_embeddings"]
