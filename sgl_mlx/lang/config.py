"""SGLang's `global_config`: settings that all programs share, such as the default backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sgl_mlx import bounds
from sgl_mlx.errors import BackendError
from sgl_mlx.lang.backend import Backend


@dataclass
class GlobalConfig:
    """Settings that all programs share.

    Attributes:
        default_backend: the backend of programs that are run without `backend=`: a `Backend`, or
            an object whose `endpoint` is a `Backend`, such as a `Runtime`. None if not set.
        skip_special_tokens_in_output: leave special tokens out of generated text.
        enable_precache_with_tracing: `run_batch` first prefills the program's constant prefix.
            Off by default: this package's engine already shares prefixes of running requests.
        enable_parallel_encoding: `join("concate_and_append")` reuses the branches' KV side by
            side if the backend supports it. If the setting is False or the backend does not, the
            branches' texts are appended and computed again.
    """

    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    enable_precache_with_tracing: bool = False
    enable_parallel_encoding: bool = True


global_config = GlobalConfig()


def set_default_backend(backend: Any) -> None:
    """Set the backend of programs that are run without `backend=`; None unsets it.

    Args:
        backend: a backend, or a `Runtime`.

    Raises:
        BackendError: the object is neither a backend nor has one as its `endpoint`.
    """
    if backend is not None:
        endpoint_of(backend)
    global_config.default_backend = backend


# Listed here, because `isinstance(x, Backend)` would take a tenth of a short program's time.
_MEMBERS = [n for n in (*Backend.__annotations__, *vars(Backend)) if not n.startswith("_")]


def endpoint_of(backend: Any) -> Backend:
    """Return `backend` itself, or its attribute `endpoint` if it has one, as a `Runtime` does.

    Raises:
        BackendError: the backend or endpoint lacks members of the `Backend` protocol.
    """
    endpoint = getattr(backend, "endpoint", backend)
    if not all(hasattr(endpoint, name) for name in _MEMBERS):
        raise BackendError(
            f"{bounds.shown(backend)} is no backend; give an Engine, Runtime, RuntimeEndpoint or "
            "OpenAI object"
        )
    return cast(Backend, endpoint)


def resolve_backend(backend: Any = None) -> Backend:
    """Return the given backend, or the default backend for None.

    Raises:
        BackendError: no backend is given and no default is set, or the object is no backend.
    """
    chosen = global_config.default_backend if backend is None else backend
    if chosen is None:
        raise BackendError(
            "no backend is set: call sgl_mlx.set_default_backend(Engine(model_path=...)) first, "
            "or pass backend= to run()"
        )
    return endpoint_of(chosen)


def flush_cache(backend: Any = None, empty_cache: bool = True) -> bool:
    """Drop all cached prefixes of a backend; None means the default backend.

    Returns False if no backend is set, or the backend is busy or has no cache to drop; else True.
    `empty_cache` is ignored; SGLang has this parameter.
    """
    if backend is None and global_config.default_backend is None:
        return False
    return resolve_backend(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """Return model, limits and counters of a backend; None means the default backend.

    Returns None if no backend is set.
    """
    if backend is None and global_config.default_backend is None:
        return None
    return resolve_backend(backend).get_server_info()
