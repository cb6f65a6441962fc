"""MLX's streams for threads that come and go.

MLX gives each thread that computes a stream of its own. On the CPU a stream has a thread of the
operating system, which MLX 0.32 never ends, not even by `clear_streams`. So a process that opens
and closes engines would gather threads, and the memory that they hold. Here threads borrow streams,
one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from sgl_mlx.models.cpu_math import on_cpu

_IDLE: list[mx.Stream] = []
"""Streams that no thread uses now; of the whole process, as MLX's streams are."""


@contextmanager
def borrowed_stream() -> Iterator[None]:
    """Let this thread compute with MLX in the `with` block, and close what MLX opened for it.

    MLX aborts the process if a thread that used it ends with streams of its own still open.
    """
    stream = _borrow() if on_cpu() else None
    try:
        yield
    finally:
        mx.synchronize()
        mx.clear_streams()
        if stream is not None:
            _IDLE.append(stream)


def _borrow() -> mx.Stream:
    try:
        stream = _IDLE.pop()
    except IndexError:
        stream = mx.new_thread_unsafe_stream(mx.cpu)
    mx.set_default_stream(stream)
    return stream
