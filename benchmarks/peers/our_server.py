"""Our own server as a child process, and as a system under test over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from sgl_mlx.benchmarks.peers.completions import HttpSession, opened
from sgl_mlx.benchmarks.peers.openai_dialect import OpenAiDialect
from sgl_mlx.benchmarks.peers.server import HOST, running
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import TEMPORARY_FOLDER, Need, Size, Workload
from sgl_mlx.cpu_kernels.build import compiled_for

_PROGRAM = [sys.executable, "-c", "from sgl_mlx.cli import main; main()"]
DIALECT = OpenAiDialect("our server", scored_tokens=0, drops_first_space=False)


def serve_command(options: Mapping[str, Any], port: int) -> list[str]:
    """Return a command line of `sgl-mlx serve`.

    Args:
        options: options of the engine (`EngineConfig`); options that are None are left out.
    """
    given = {name: value for name, value in options.items() if value is not None}
    command = [*_PROGRAM, "serve", "--host", HOST, "--port", str(port), "--no-access-log"]
    for name, value in given.items():
        command += ["--engine-option", f"{name}={json.dumps(value)}"]
    return command


class OurServer:
    """A `System` that starts one `sgl-mlx serve` per session, and calls it like any other server.

    Programs run in their HTTP version, so the engine gets no hints from our language. Pictures are
    not sent.

    Args:
        options: options of the engine (`EngineConfig`).
        timeout: see `HttpSession`.
    """

    name = "ours"
    version = ""
    abilities: frozenset[Need] = frozenset({"grammar"})

    def __init__(self, options: Mapping[str, Any], timeout: float = 300.0) -> None:
        self.instruction_sets = compiled_for() or "MLX's own build"
        self._options = dict(options)
        self._timeout = timeout

    @contextmanager
    def session(self, workload: Workload, size: Size, words: Words) -> Iterator[HttpSession]:
        with ExitStack() as stack:
            options = {**self._options, **workload.engine(size)}
            if options.get("disk_cache_dir") == TEMPORARY_FOLDER:
                options["disk_cache_dir"] = stack.enter_context(TemporaryDirectory())

            def command(port: int) -> Sequence[str]:
                return serve_command(options, port)

            address = stack.enter_context(running(self.name, command, "/health"))
            yield stack.enter_context(
                opened(self.name, address, DIALECT, workload, words, self._timeout)
            )
