"""A server over an engine of this process, in a thread, and the time its event loop takes."""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

HOST = "127.0.0.1"


@dataclass
class Busy:
    """The longest stretches in which an event loop was at work without a look at its sockets.

    Attributes:
        cpu: processor seconds of the loop's thread in the longest stretch.
        wall: seconds of the longest stretch, with all waits for Python's lock and for a processor.
    """

    cpu: float = 0.0
    wall: float = 0.0


class TimedSelector(selectors.DefaultSelector):
    """A selector that measures the time between its calls, in which the event loop works."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = Busy()
        self._since: tuple[float, float] | None = None

    def select(self, timeout: float | None = None) -> Any:
        if self._since is not None:
            cpu, wall = self._since
            self.busy.cpu = max(self.busy.cpu, time.thread_time() - cpu)
            self.busy.wall = max(self.busy.wall, time.perf_counter() - wall)
        ready = super().select(timeout)
        self._since = time.thread_time(), time.perf_counter()
        return ready


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        port: its port on 127.0.0.1.
        cpu: returns the processor seconds that the event loop's thread has taken so far.
    """

    port: int
    cpu: Callable[[], float]


@contextmanager
def served(app: Any, selector: TimedSelector | None = None) -> Iterator[Served]:
    """Serve an ASGI application from a thread until the `with` block ends.

    Args:
        selector: runs asyncio's own event loop on this selector; without it, uvicorn chooses the
            loop, as `sgl-mlx serve` does.
    """
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    make = config.get_loop_factory() if selector is None else _loop_on(selector)
    loops: list[asyncio.AbstractEventLoop] = []
    with socket.create_server((HOST, 0)) as listener:

        def run() -> None:
            with asyncio.Runner(loop_factory=make) as runner:
                loops.append(runner.get_loop())
                runner.run(server.serve([listener]))

        async def cpu() -> float:
            return time.thread_time()

        thread = threading.Thread(target=run, name="server")
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Served(
                listener.getsockname()[1],
                lambda: asyncio.run_coroutine_threadsafe(cpu(), loops[0]).result(),
            )
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def _loop_on(selector: TimedSelector) -> Callable[[], asyncio.AbstractEventLoop]:
    return lambda: asyncio.SelectorEventLoop(selector)
