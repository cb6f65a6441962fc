"""mlx-lm's server as a system under test, with its best settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.peers.completions import HttpSession, Question, opened
from sgl_mlx.benchmarks.peers.server import HOST, running
from sgl_mlx.benchmarks.peers.system import Answer, PeerError
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Need, Size, Workload

_PROMPTS_KEPT = 256


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


@dataclass(frozen=True)
class MlxLmDialect:
    """Dialect of mlx-lm's `POST /v1/completions` (OpenAI's), with at least one output token."""

    path: str = "/v1/completions"
    scored_tokens: int = 1
    drops_first_space: bool = True  # mlx-lm's detokenizer of byte-level vocabularies strips it

    def request(self, question: Question) -> dict[str, Any]:
        return {
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": list(question.stop),
            "logit_bias": {str(token): bias for token, bias in question.bias.items()},
        }

    def text(self, event: Mapping[str, Any]) -> str:
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise PeerError(f"mlx-lm sent no choices: {str(event)[:200]}")
        return "".join(str(choice.get("text") or "") for choice in choices)

    def usage(self, event: Mapping[str, Any]) -> Answer | None:
        usage = event.get("usage")
        if not usage:
            return None
        try:
            details = usage.get("prompt_tokens_details") or {}
            return Answer(
                int(usage["prompt_tokens"]),
                int(usage["completion_tokens"]),
                int(details.get("cached_tokens", 0)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PeerError(f"mlx-lm counts no tokens in {str(usage)[:200]}") from error


DIALECT = MlxLmDialect()
