"""Servers of OpenAI's chat protocol that are measured: started here, or running elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from sgl_mlx.benchmarks.peers.llama_cpp import LlamaCpp
from sgl_mlx.benchmarks.peers.mlx_lm import MlxLm
from sgl_mlx.benchmarks.peers.our_server import serve_command
from sgl_mlx.benchmarks.peers.server import running

CONTEXT = 5120
"""Tokens of the longest conversation of a trace, with its answers."""


class ChatServer(Protocol):
    """A server to measure.

    Attributes:
        name: the server's name in reports.
        model: model name that requests carry; None for none.
        key: API key that requests carry; None for none.
        steered: True if the server runs the model whose tokens the benchmark knows.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str | None: ...

    @property
    def key(self) -> str | None: ...

    @property
    def steered(self) -> bool: ...

    def open(self, at_once: int) -> Any:
        """Return a context whose value is the server's address.

        Args:
            at_once: number of conversations that will be held at the same time.

        Raises:
            PeerError: when the server cannot be started.
        """
        ...


@dataclass(frozen=True)
class StartedServer:
    """A `ChatServer` that is started for each run, so that its cache is empty, and then ended.

    Args:
        name, model, key, steered: see `ChatServer`.
        command: makes the command line from a port and the number of conversations at once.
        environment: variables added to this process's environment.
    """

    name: str
    command: Callable[[int, int], Sequence[str]]
    model: str | None = None
    key: str | None = None
    steered: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def open(self, at_once: int) -> Iterator[str]:
        def command(port: int) -> Sequence[str]:
            return self.command(port, at_once)

        with running(self.name, command, "/health", environment=self.environment) as address:
            yield address


@dataclass(frozen=True)
class RunningServer:
    """A `ChatServer` that already runs, anywhere, with any model; its cache may hold anything.

    Args:
        name, model, key, steered: see `ChatServer`.
        address: the server's address, with or without `/v1`.
    """

    name: str
    address: str
    model: str | None = None
    key: str | None = None
    steered: bool = False

    @contextmanager
    def open(self, at_once: int) -> Iterator[str]:
        yield self.address.rstrip("/").removesuffix("/v1")


def our_server(options: Mapping[str, Any]) -> StartedServer:
    """Return `sgl-mlx serve` with these engine options (`EngineConfig`)."""
    return StartedServer("ours", lambda port, _: serve_command(options, port))


def llama_cpp(model: str, program: str | None) -> StartedServer:
    """Return llama-server with as many slots as there are conversations at once.

    Raises:
        PeerError: `model` is no GGUF file, or there is no such program.
    """
    return StartedServer("llama.cpp", LlamaCpp(model, program, context=CONTEXT).command)


def mlx_lm(folder: str) -> StartedServer:
    """Return mlx-lm's server of a model folder."""
    return StartedServer("mlx-lm", MlxLm(folder).command)
