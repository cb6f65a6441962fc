"""Runs of one trace on several servers in turn, and their ratios pair by pair."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.benchmarks.peers.system import PeerError
from sgl_mlx.benchmarks.serve.client import ChatClient
from sgl_mlx.benchmarks.serve.measure import Progress, Run, run_trace
from sgl_mlx.benchmarks.serve.servers import ChatServer
from sgl_mlx.benchmarks.serve.trace import Conversation, Trace
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size

Watch = Callable[[str, int, int], None]
"""Function that is called with a run's name, the turns answered, and all turns."""

_LEAST = 4
"""Fewest conversations of a run. A run with one conversation at a time then measures several."""
_SAME = 0.01
"""Largest relative difference of prompt tokens between runs that are compared."""


@dataclass
class Comparison:
    """All runs of a trace with `at_once` conversations at a time; the first server is ours.

    Attributes:
        runs: runs of each server that did not fail, by name.
        failures: why a server failed or cannot run here, by name.
    """

    trace: Trace
    at_once: int
    ours: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def peers(self) -> list[str]:
        return [name for name in (*self.runs, *self.failures) if name != self.ours]

    def not_compared(self, peer: str) -> str | None:
        """Return why `peer` has no ratio; None if it has one."""
        for name in (peer, self.ours):
            if name in self.failures:
                return self.failures[name]
        for theirs, ours in zip(self.runs[peer], self.runs[self.ours], strict=True):
            apart = abs(theirs.prompt_tokens - ours.prompt_tokens)
            if theirs.output_tokens != ours.output_tokens or apart > _SAME * ours.prompt_tokens:
                return (
                    f"different work: {ours.prompt_tokens} prompt and {ours.output_tokens} output "
                    f"tokens here, {theirs.prompt_tokens} and {theirs.output_tokens} there"
                )
        return None

    def ratio(self, peer: str, figure: Callable[[Run], float]) -> float | None:
        """Return the median ratio of our figure to `peer`'s, run by run; None if not compared."""
        if self.not_compared(peer) is not None:
            return None
        pairs = zip(self.runs[self.ours], self.runs[peer], strict=True)
        return statistics.median(figure(ours) / figure(theirs) for ours, theirs in pairs)

    def to_dict(self) -> dict[str, Any]:
        ratios = {peer: self.ratio(peer, lambda run: run.speed) for peer in self.peers}
        median = {peer: self.ratio(peer, _median_first) for peer in self.peers}
        mean = {peer: self.ratio(peer, _mean_first) for peer in self.peers}
        reasons = {peer: self.not_compared(peer) for peer in self.peers}
        return {
            "trace": self.trace.name,
            "at_once": self.at_once,
            "ratio": {peer: round(ratio, 3) for peer, ratio in ratios.items() if ratio},
            "ttft_ratio": {peer: round(ratio, 3) for peer, ratio in median.items() if ratio},
            "ttft_mean_ratio": {peer: round(ratio, 3) for peer, ratio in mean.items() if ratio},
            "not_compared": {peer: why for peer, why in reasons.items() if why is not None},
            "failures": self.failures,
            "runs": [run.to_dict() for runs in self.runs.values() for run in runs],
        }


@dataclass(frozen=True)
class Bench:
    """The benchmark of servers.

    Args:
        servers: the servers, ours first.
        missing: servers that cannot run on this machine: the reason, by name.
        words: makes texts, and the outputs of servers that are steered.
        size: size of the conversations.
        repeats: number of runs on each server, in turn (A B A B).
        timeout: seconds of silence after which a request fails.
        watch: is called with the progress.
    """

    servers: Sequence[ChatServer]
    missing: dict[str, str]
    words: Words
    size: Size
    repeats: int
    timeout: float
    watch: Watch = lambda name, done, total: None

    def compare(self, traces: Sequence[Trace], counts: Sequence[int]) -> Iterator[Comparison]:
        """Run each trace at each number of conversations at once; yield finished comparisons.

        A server that fails is left out of all further runs of that comparison.
        """
        for trace in traces:
            for at_once in counts:
                yield self._compared(trace, at_once)

    def _compared(self, trace: Trace, at_once: int) -> Comparison:
        found = Comparison(trace, at_once, self.servers[0].name, failures=dict(self.missing))
        conversations = trace.conversations(self.words, self.size, max(at_once, _LEAST))
        for server in [*self.servers] * self.repeats:
            if server.name in found.failures:
                continue
            try:
                run = self._run(server, trace, conversations, at_once)
            except PeerError as error:
                found.failures[server.name] = str(error)
                found.runs.pop(server.name, None)
            else:
                found.runs.setdefault(server.name, []).append(run)
        return found

    def _run(
        self,
        server: ChatServer,
        trace: Trace,
        conversations: Sequence[Conversation],
        at_once: int,
    ) -> Run:
        total = sum(len(conversation.turns) for conversation in conversations)
        name = f"{trace.name} at {at_once} on {server.name}"
        self.watch(name, 0, total)
        with server.open(at_once) as address:
            progress = _counted(self.watch, name, total)
            return asyncio.run(self._asked(server, address, conversations, at_once, progress))

    async def _asked(
        self,
        server: ChatServer,
        address: str,
        conversations: Sequence[Conversation],
        at_once: int,
        progress: Progress,
    ) -> Run:
        words = self.words if server.steered else None
        async with ChatClient(
            server.name, address, server.model, server.key, self.timeout
        ) as client:
            return await run_trace(client, server.name, conversations, at_once, words, progress)


def _counted(watch: Watch, name: str, total: int) -> Progress:
    return lambda done: watch(name, done, total)


def _median_first(run: Run) -> float:
    return statistics.median(run.first)


def _mean_first(run: Run) -> float:
    """Return the mean time to the first text, in which long waits of a few requests count."""
    return statistics.fmean(run.first)
