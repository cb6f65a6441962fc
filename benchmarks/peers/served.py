"""A server that runs already, or a router before several, as a system under test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from sgl_mlx.benchmarks.peers.completions import opened
from sgl_mlx.benchmarks.peers.our_server import DIALECT
from sgl_mlx.benchmarks.peers.ours import Steered, default_backend, run_program
from sgl_mlx.benchmarks.peers.system import PeerError, Usage
from sgl_mlx.benchmarks.suite.workloads.words import Vocabulary, Words
from sgl_mlx.benchmarks.suite.workloads.workload import Need, Row, Size, Workload
from sgl_mlx.errors import BackendError
from sgl_mlx.lang.backends.runtime_endpoint import RuntimeEndpoint

_METRICS = ("/engine_metrics", "/metrics")
"""Paths of the counters: of a router, which adds up its workers' counters, and of a server."""


class Served:
    """A `System` that uses a server of `sgl-mlx serve`, or a router before several.

    Its cache is emptied before each session. Nobody else should use it meanwhile.

    Args:
        address: the server's address.
        tokenizer: the tokenizer of the model that it serves.
        programs: True runs programs of the language through `RuntimeEndpoint`; False runs their
            HTTP versions.
        timeout: see `HttpSession`.
    """

    name = "ours"
    version = ""
    instruction_sets = ""
    abilities: frozenset[Need] = frozenset({"grammar"})

    def __init__(
        self, address: str, tokenizer: Vocabulary, programs: bool = True, timeout: float = 300.0
    ) -> None:
        self._address = address.rstrip("/")
        self._tokenizer = tokenizer
        self._programs = programs
        self._timeout = timeout

    @contextmanager
    def session(self, workload: Workload, size: Size, words: Words) -> Iterator[ServedSession]:
        endpoint = RuntimeEndpoint(self._address)
        try:
            dialect = replace(DIALECT, model=str(endpoint.model_info["served_model_name"]))
            with opened(
                self.name, self._address, dialect, workload, words, self._timeout
            ) as session:
                endpoint.flush_cache()
                before = token_counts(self._address)
                if not self._programs:
                    yield ServedSession(session.usage, session.run, self._address, before)
                    return
                steered = Steered(endpoint, self._tokenizer, words)

                def run(row: Row) -> None:
                    run_program(workload, row, steered)

                with default_backend(steered):  # for nested programs
                    yield ServedSession(steered.usage, run, self._address, before)
        except BackendError as error:
            raise PeerError(f"{self._address}: {error}") from error
        finally:
            endpoint.shutdown()


@dataclass(frozen=True)
class ServedSession:
    """A `Session` on a running server; its details are counts that the servers keep.

    Attributes:
        before: the servers' counts when the session began; see `token_counts`.
    """

    usage: Usage
    runs: Callable[[Row], None]
    address: str
    before: Mapping[str, int]

    def run(self, row: Row) -> None:
        self.runs(row)

    def details(self) -> Mapping[str, Any]:
        """Return the prompt tokens since the session began, prefills of forks included."""
        now = token_counts(self.address)
        prompts, cached = (now[name] - self.before[name] for name in ("prompt", "cached"))
        return {
            "total_tokens": prompts,
            "cached_tokens": cached,
            "computed_tokens": prompts - cached,
            "hit_rate": round(cached / prompts, 4) if prompts else 0.0,
        }


def token_counts(address: str) -> dict[str, int]:
    """Return how many prompt tokens a server, or all workers of a router, have had so far.

    Returns:
        The number of all tokens under "prompt", and of the cached ones among them under "cached".

    Raises:
        PeerError: the server tells no counts.
    """
    for path in _METRICS:
        try:
            answer = httpx.get(address + path, timeout=30.0, trust_env=False)
        except httpx.HTTPError as error:
            raise PeerError(f"{address} does not answer: {error}") from error
        if answer.is_success:
            return {name: _sum(name, answer.text) for name in ("prompt", "cached")}
    raise PeerError(f"{address} tells no counts of tokens: no {' or '.join(_METRICS)}")


def _sum(name: str, metrics: str) -> int:
    """Return the sum over all workers of the counter of `name` tokens."""
    found = re.findall(rf"^sglang[:_]{name}_tokens_total\{{.*\}} (\S+)$", metrics, re.MULTILINE)
    return round(sum(map(float, found)))
