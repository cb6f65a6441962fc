"""Load on a server from a process of its own, which reads answers without parsing them.

A client that decodes every event would take as much processor time as the server. For each order
(requests to send), the process reads one line of JSON, and writes one line with the times.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

from sgl_mlx.errors import BenchmarkError

_HEAD = (
    "POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
    "content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
)
_PIECE = 1 << 16


@dataclass(frozen=True)
class Post:
    """One request: its path and its JSON body."""

    path: str
    body: str


@dataclass(frozen=True)
class Order:
    """Requests to send to a server, `at_once` at a time.

    Attributes:
        aside: additional requests, sent when the first answer to `posts` has ended, and cancelled
            when all answers to `posts` have ended.
    """

    host: str
    port: int
    at_once: int
    posts: Sequence[Post]
    aside: Sequence[Post] = ()


@dataclass(frozen=True)
class Seen:
    """Times of an order that was carried out.

    Attributes:
        seconds: time from the first request to the end of the last answer.
        first: seconds from each request to its first event.
    """

    seconds: float
    first: tuple[float, ...]


class Load:
    """The process that sends requests; see `opened_load`."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers

    def send(self, order: Order) -> Seen:
        """Send the requests of an order and wait for their ends.

        Raises:
            BenchmarkError: a request failed, or the process died.
        """
        print(json.dumps(asdict(order)), file=self._orders, flush=True)
        found: dict[str, Any] = json.loads(self._answers.readline() or "{}")
        if "seconds" not in found:
            raise BenchmarkError(found.get("error", "the process that sends requests died"))
        return Seen(found["seconds"], tuple(found["first"]))


@contextmanager
def opened_load() -> Iterator[Load]:
    """Start a process that sends requests, and end it with the `with` block."""
    command = [sys.executable, "-m", "sgl_mlx.benchmarks.serve.load"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Load(process.stdin, process.stdout)
        finally:
            process.kill()


async def carry_out(order: Order) -> Seen:
    """Send the requests of an order.

    Raises:
        BenchmarkError: a request was refused, or its answer broke off.
    """
    waiting, first, ended = iter(order.posts), [], asyncio.Event()

    async def visitor() -> None:
        for post in waiting:
            first.append(await _answered(order, post))
            ended.set()

    async def besides(post: Post) -> None:
        await ended.wait()
        await _answered(order, post, refusable=True)

    aside = [asyncio.create_task(besides(post)) for post in order.aside]
    began = time.perf_counter()
    try:
        await asyncio.gather(*(visitor() for _ in range(order.at_once)))
        seconds = time.perf_counter() - began
    finally:
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
    return Seen(seconds, tuple(first))


async def _answered(order: Order, post: Post, refusable: bool = False) -> float:
    """Send a request and read its answer to the end; return the seconds to its first event."""
    began, first, tail = time.perf_counter(), 0.0, b""
    reader, writer = await asyncio.open_connection(order.host, order.port)
    try:
        content = post.body.encode()
        head = _HEAD.format(path=post.path, host=order.host, port=order.port, length=len(content))
        writer.write(head.encode() + content)
        status = await reader.readline()
        while piece := await reader.read(_PIECE):
            if not first and b"data: " in piece:
                first = time.perf_counter() - began
            tail = (tail + piece)[-_PIECE:]
    finally:
        writer.close()
    if not refusable and (b" 200 " not in status or b"data: [DONE]" not in tail):
        said = (status + tail[-300:]).decode("utf-8", "replace")
        raise BenchmarkError(f"the server refused a request or broke off: {said}")
    return first


def _parsed(line: str) -> Order:
    given = json.loads(line)
    for name in ("posts", "aside"):
        given[name] = [Post(**post) for post in given[name]]
    return Order(**given)


def _main() -> None:
    for line in sys.stdin:
        try:
            told = asdict(asyncio.run(carry_out(_parsed(line))))
        except (BenchmarkError, OSError) as error:
            told = {"error": str(error)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
