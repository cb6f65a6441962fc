"""Ranks as processes of this machine, as `mlx.launch` starts them, with faults on demand."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

LIMIT = 400
"""Most seconds of anything; a rank that is not done by then hangs."""
SILENCE = "2"
"""Seconds of silence after which a rank counts as lost in these tests."""
ROOT = Path(__file__).parents[3]


class Launched:
    """Ranks that run one command each, with its output in files; the `with` block ends them.

    Args:
        folder: for the host file and the output.
        hosts: address of each rank.
        inside: a command before each rank's command, such as one that enters a namespace.
        changes: by rank, variables of the environment, and `cwd`.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        size: int = 2,
        hosts: Sequence[str] = (),
        inside: Sequence[Sequence[str]] = (),
        changes: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        hosts = hosts or ["127.0.0.1"] * size
        ports = free_ports(size + 1)
        hostfile = folder / "hosts.json"
        hostfile.write_text(
            json.dumps([[f"{h}:{p}"] for h, p in zip(hosts, ports[1:], strict=True)])
        )
        self._folder, self._files = folder, ExitStack()
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(size):
            own = dict((changes or {}).get(rank, {}))
            cwd = own.pop("cwd", str(ROOT))
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OPENBLAS_NUM_THREADS": "1",
                "MLX_HOSTFILE": str(hostfile),
                "MLX_RANK": str(rank),
                "SGL_MLX_RANKS_ADDRESS": f"{hosts[0]}:{ports[0]}",
                "SGL_MLX_RANKS_TIMEOUT": SILENCE,
                **own,
            }
            out, err = (
                self._files.enter_context((folder / f"{rank}.{kind}").open("wb"))
                for kind in ("out", "err")
            )
            prefix = inside[rank] if inside else ()
            process = subprocess.Popen(
                [*prefix, *command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            self.processes.append(process)

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._files.close()

    def codes(self) -> list[int]:
        """Wait until every process has ended by itself; return their exit codes."""
        return [process.wait(LIMIT) for process in self.processes]

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def output(self, rank: int = 0, kind: str = "out") -> str:
        return (self._folder / f"{rank}.{kind}").read_text("utf-8", "replace")

    def wait_for(self, line: str) -> None:
        """Wait until rank 0 has printed a line that begins so; fails if it ends before."""
        while not any(found.startswith(line) for found in self.output().splitlines()):
            try:
                code = self.processes[0].wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"rank 0 ended with code {code}: {self.output(0, 'err')}")


def python(*arguments: str) -> list[str]:
    """The command that runs a module of the tests in this Python."""
    return [sys.executable, "-W", "ignore", "-m", *arguments]


def free_ports(count: int) -> list[int]:
    """Port numbers that nothing listens on now."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in made:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in made]


def lines(text: str) -> list[dict[str, Any]]:
    """The lines of a text that are JSON objects."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
