"""mlx-lm's server as a system under test, with its best settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sgl_mlx.benchmarks.peers.completions import HttpSession, opened
from sgl_mlx.benchmarks.peers.openai_dialect import OpenAiDialect
from sgl_mlx.benchmarks.peers.server import HOST, running
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Need, Size, Workload

_PROMPTS_KEPT = 256
# the detokenizer of byte-level vocabularies strips the first space; at least one token is written
DIALECT = OpenAiDialect("mlx-lm", scored_tokens=1, drops_first_space=True)


class MlxLm:
    """A `System` that starts one mlx-lm server per session.

    Args:
        model: a folder in MLX's format; see `Weights.mlx_folder`.
        timeout: see `HttpSession`.
    """

    name = "mlx-lm"
    version = ""
    instruction_sets = ""
    abilities: frozenset[Need] = frozenset()

    def __init__(self, model: str, timeout: float = 300.0) -> None:
        self._model = model
        self._timeout = timeout

    @contextmanager
    def session(self, workload: Workload, size: Size, words: Words) -> Iterator[HttpSession]:
        def command(port: int) -> Sequence[str]:
            return self.command(port, workload.concurrency)

        with (
            running(self.name, command, "/health") as address,
            opened(self.name, address, DIALECT, workload, words, self._timeout) as session,
        ):
            yield session

    def command(self, port: int, concurrency: int) -> list[str]:
        options = {
            "--model": self._model,
            "--host": HOST,
            "--port": port,
            "--decode-concurrency": max(concurrency, 1),
            "--prompt-concurrency": max(concurrency, 1),
            "--prompt-cache-size": _PROMPTS_KEPT,
            "--log-level": "ERROR",
        }
        # through our module, which loads a fast BLAS first where MLX needs one
        program = [sys.executable, "-m", "sgl_mlx.benchmarks.peers.mlx_lm_server"]
        return [*program, *(str(x) for pair in options.items() for x in pair)]
