"""SGLang's `global_config`: the one object that all programs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sgl_mlx.errors import BackendError
from sgl_mlx.lang.backend import Backend


@dataclass
class GlobalConfig:
    """Defaults for programs.

    Attributes:
        default_backend: runs programs that are given no `backend=`: a `Backend`, or an object
            whose `endpoint` is one, such as a `Runtime`.
        skip_special_tokens_in_output: leave special tokens out of generated text.
        enable_precache_with_tracing: `run_batch` computes the programs' common prefix first.
            Off by default: a runtime that shares prefixes in flight gains nothing from it.
        enable_parallel_encoding: `join("concate_and_append")` puts the branches' KV side by side
            if the backend can; otherwise it appends their text.
    """

    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    enable_precache_with_tracing: bool = False
    enable_parallel_encoding: bool = True


global_config = GlobalConfig()


def set_default_backend(backend: Any) -> None:
    """Run programs on this backend, or this `Runtime`'s, unless they are given another.

    Raises:
        BackendError: when it is neither a backend nor has one as its `endpoint`.
    """
    if backend is not None:
        endpoint_of(backend)
    global_config.default_backend = backend


# Listed once: `isinstance(x, Backend)` would take a tenth of a short program's time.
_MEMBERS = [n for n in (*Backend.__annotations__, *vars(Backend)) if not n.startswith("_")]


def endpoint_of(backend: Any) -> Backend:
    """Return the backend itself, or the endpoint of a `Runtime`.

    Raises:
        BackendError: for an object that is neither.
    """
    endpoint = getattr(backend, "endpoint", backend)
    if not all(hasattr(endpoint, name) for name in _MEMBERS):
        raise BackendError(
            f"{backend!r} is no backend; give an Engine, Runtime, RuntimeEndpoint or OpenAI object"
        )
    return cast(Backend, endpoint)


def resolve_backend(backend: Any = None) -> Backend:
    """Return the given backend, else the default one.

    Raises:
        BackendError: without either.
    """
    chosen = global_config.default_backend if backend is None else backend
    if chosen is None:
        raise BackendError(
            "no backend is set: call sgl_mlx.set_default_backend(Engine(model_path=...)) first, "
            "or pass backend= to run()"
        )
    return endpoint_of(chosen)


def flush_cache(backend: Any = None, empty_cache: bool = True) -> bool:
    """Drop all cached prefixes; returns False if no backend is set or it is busy.

    `empty_cache` is accepted for compatibility with SGLang; freed memory is returned anyway.
    """
    if backend is None and global_config.default_backend is None:
        return False
    return resolve_backend(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """Return model, limits and counters of a backend; None if no backend is set."""
    if backend is None and global_config.default_backend is None:
        return None
    return resolve_backend(backend).get_server_info()
