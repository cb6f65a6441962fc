"""Threads that compute one after another leave no threads of the operating system."""

from __future__ import annotations

import threading
from collections.abc import Callable

import mlx.core as mx
import psutil
import pytest

from sgl_mlx.models.cpu_math import on_cpu
from sgl_mlx.models.streams import borrowed_stream

pytestmark = pytest.mark.skipif(not on_cpu(), reason="needs Linux, where MLX computes on the CPU")


def on_threads(count: int, work: Callable[[], None]) -> None:
    for _ in range(count):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


def compute() -> None:
    with borrowed_stream():
        noise = mx.random.normal((8, 8))
        assert (noise @ noise).shape == (8, 8)
        mx.eval(mx.compile(lambda x: x @ x + 1)(noise))


def test_threads_that_compute_leave_no_threads() -> None:
    on_threads(2, compute)
    before = psutil.Process().num_threads()
    on_threads(20, compute)
    assert psutil.Process().num_threads() < before + 10  # threads that have just ended may count


def test_threads_at_the_same_time_have_streams_of_their_own() -> None:
    seen: list[mx.Stream] = []
    both = threading.Barrier(2)

    def work() -> None:
        with borrowed_stream():
            both.wait(60)
            seen.append(mx.default_stream(mx.cpu))
            mx.eval(mx.ones(3) + 1)
            both.wait(60)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] != seen[1]


def test_an_error_gives_the_stream_back() -> None:
    def fail() -> None:
        with pytest.raises(ZeroDivisionError), borrowed_stream():
            raise ZeroDivisionError

    on_threads(1, fail)
    before = psutil.Process().num_threads()
    on_threads(20, fail)
    assert psutil.Process().num_threads() < before + 10
