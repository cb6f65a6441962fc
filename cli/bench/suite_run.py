"""A run of `sgl-mlx bench suite`: its systems, workloads, progress bar and signals."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.bench.watching import ended_by_signals, watched
from sgl_mlx.cli.engine import EngineOptions
from sgl_mlx.errors import BenchmarkError

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.peers.system import System
    from sgl_mlx.benchmarks.peers.weights import Weights
    from sgl_mlx.benchmarks.suite.workloads.workload import Workload

PEERS = ("llama.cpp", "mlx-lm")


@dataclass(frozen=True)
class SuiteRun:
    """The options of `sgl-mlx bench suite` for a run; `--help` describes each of them."""

    names: tuple[str, ...]
    options: EngineOptions
    peers: tuple[str, ...]
    llama_server: str | None
    ours: str
    backend: str | None
    ablations: tuple[str, ...]
    scale: float
    data: str | None
    repeats: int
    timeout: float
    tower: str

    def document(self) -> dict[str, Any]:
        """Run all workloads on all systems; returns the JSON document (see `report.document`)."""
        workloads = self._workloads()
        from sgl_mlx.benchmarks.peers.weights import Weights
        from sgl_mlx.benchmarks.suite.compare import compare
        from sgl_mlx.benchmarks.suite.report.document import describe
        from sgl_mlx.benchmarks.suite.workloads.words import Words
        from sgl_mlx.benchmarks.suite.workloads.workload import Size

        with ExitStack() as stack:
            stack.enter_context(ended_by_signals())
            folder = Path(stack.enter_context(TemporaryDirectory()))
            weights = Weights(self.options.model_path, folder)
            systems, missing = self._systems(weights, self._mmproj(weights, workloads))
            size, words = Size(self.scale, folder), Words(weights.tokenizer)
            watch = stack.enter_context(watched())
            found = []
            for comparison in compare(
                systems, missing, workloads, size, words, self.repeats, watch
            ):
                found.append(comparison)
                _say(comparison.to_dict())
            command = shlex.join(["sgl-mlx", *sys.argv[1:]])
            return describe(found, self.scale, self.repeats, command, systems)

    def _workloads(self) -> list[Workload]:
        from sgl_mlx.benchmarks.suite.workloads.catalogue import find
        from sgl_mlx.benchmarks.suite.workloads.data_set import over_data

        workloads = find(self.names)
        if self.data is None:
            return workloads
        if len(self.names) != 1:
            raise click.UsageError("--data is for one workload: name it, and no other")
        return [over_data(workload, Path(self.data)) for workload in workloads]

    def _mmproj(self, weights: Weights, workloads: list[Workload]) -> str | None:
        """Return the path of the vision tower: the given one, a random one, or None.

        A random tower is made if none is given and a workload has pictures.
        """
        needed = any("images" in workload.needs for workload in workloads)
        if self.options.mmproj is None and needed:
            return str(weights.random_tower(self.tower))
        return self.options.mmproj

    def _systems(self, weights: Weights, mmproj: str | None) -> tuple[list[System], dict[str, str]]:
        """Return the systems, ours first; and by name, why each missing peer cannot run here."""
        from sgl_mlx.benchmarks.suite.ablations import ablated

        # steered answers repeat one word, and drafts would guess them all
        chosen = {**asdict(self.options.without_drafts()), "mmproj": mmproj}
        systems = [
            self._our_system(chosen, weights),
            *(ablated(name, chosen) for name in self.ablations),
        ]
        missing: dict[str, str] = {}
        for peer in self.peers:
            try:
                systems.append(self._peer(peer, weights, mmproj))
            except BenchmarkError as error:
                missing[peer] = str(error)
        return systems, missing

    def _our_system(self, options: dict[str, Any], weights: Weights) -> System:
        """Return our engine in this process, or the server that --ours or --backend says."""
        from sgl_mlx.benchmarks.peers.our_server import OurServer
        from sgl_mlx.benchmarks.peers.ours import Ours
        from sgl_mlx.benchmarks.peers.served import Served

        if self.backend is not None:
            programs = self.ours != "http"
            return Served(self.backend, weights.tokenizer, programs, self.timeout)

        return OurServer(options, self.timeout) if self.ours == "http" else Ours(options)

    def _peer(self, name: str, weights: Weights, mmproj: str | None) -> System:
        """Return the peer `name`, "mlx-lm" or llama.cpp; convert the weights for it if needed.

        Raises:
            PeerError: llama.cpp has no server program here, or the model is no GGUF file. mlx-lm
                fails only when its session starts.
        """
        from sgl_mlx.benchmarks.peers.llama_cpp import LlamaCpp
        from sgl_mlx.benchmarks.peers.mlx_lm import MlxLm

        if name == "mlx-lm":
            return MlxLm(str(weights.mlx_folder()), self.timeout)
        return LlamaCpp(str(weights.path), self.llama_server, mmproj, timeout=self.timeout)


def _say(row: dict[str, Any]) -> None:
    """Print a workload's ratios, and the reasons for missing ratios, on standard error."""
    ratios = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row["ratio"].items())
    reasons = "; ".join(f"{peer}: {why}" for peer, why in row["not_compared"].items())
    click.echo(f"{row['name']}: {'; '.join(filter(None, (ratios, reasons)))}", err=True)
