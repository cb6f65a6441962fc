"""llama.cpp's server, `llama-server`, as a system under test, with its best settings."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgl_mlx import machine
from sgl_mlx.benchmarks.peers.completions import HttpSession, Question, opened
from sgl_mlx.benchmarks.peers.server import HOST, free_port, running
from sgl_mlx.benchmarks.peers.system import Answer, PeerError
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import IMAGE, Need, Size, Workload

PROGRAM = "llama-server"
_HOMEBREW = ("/opt/homebrew/bin", "/usr/local/bin")
_CACHE_MB = 4096
_MARK = "<__media__>"
"""Placeholder of a picture in a prompt; by default newer servers use a random one."""
_FEATURE = re.compile(r"(?:(?P<device>\w+) : )?(?P<feature>\w+) = (?P<value>\w+)")
_NO_INSTRUCTIONS = frozenset({"ACCELERATE", "KLEIDIAI", "LLAMAFILE", "OPENMP", "REPACK"})
"""CPU features that llama.cpp lists besides instruction sets: libraries and data layouts."""
_MARKED = {"LLAMA_MEDIA_MARKER": _MARK}


def find_server(given: str | None = None) -> str:
    """Return the path of llama-server.

    Without `given`, looks on PATH, in Homebrew's folders and in the folder of our build script.

    Raises:
        PeerError: when there is no such program; the message says how to get one.
    """
    if given is not None:
        if not os.access(given, os.X_OK) or os.path.isdir(given):
            raise PeerError(f"--llama-server {given}: no program there")
        return given
    folders = [*_HOMEBREW, str(built_in())]
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=os.pathsep.join(folders))
    if found is None:
        how = (
            "brew install llama.cpp" if machine.on_mac() else "benchmarks/peers/build_llama_cpp.sh"
        )
        raise PeerError(f"llama.cpp: no {PROGRAM} on PATH; get one with `{how}`")
    return found


def cpu_features(output: str) -> str:
    """Return the instruction sets in a server's `system_info` line, or "" without such a line.

    The line reads `system_info: … | CPU : AVX = 1 | AVX2 = 1 | OPENMP = 1 |`, perhaps with other
    devices (`Metal : …`) before or after the CPU.
    """
    line = re.search(r"system_info: .*", output)
    found, device = [], ""
    for item in line.group().split("|") if line else ():
        named = _FEATURE.fullmatch(item.strip())
        if named is None:
            continue
        device = named["device"] or device
        if device == "CPU" and named["value"] != "0" and named["feature"] not in _NO_INSTRUCTIONS:
            found.append(named["feature"])
    return " ".join(found)


def built_in() -> Path:
    """Return the folder that `build_llama_cpp.sh` builds into."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "sgl-mlx", "llama.cpp")


class LlamaCpp:
    """A `System` that starts one llama-server per session.

    Args:
        model: path of a GGUF file.
        server: path of llama-server; None looks for it (`find_server`).
        mmproj: path of the vision part, a GGUF file; None runs no workloads with pictures.
        threads: number of CPU threads; None takes as many as there are cores.
        context: tokens that fit into one slot.
        timeout: see `HttpSession`.

    Raises:
        PeerError: when `model` is no GGUF file or there is no llama-server.
    """

    name = "llama.cpp"

    def __init__(
        self,
        model: str,
        server: str | None = None,
        mmproj: str | None = None,
        threads: int | None = None,
        context: int = 4096,
        timeout: float = 300.0,
    ) -> None:
        if not model.endswith(".gguf"):
            raise PeerError(f"llama.cpp runs GGUF files, and {model} is none")
        self._model = model
        self._server = find_server(server)
        self._mmproj = mmproj
        self._threads = threads or os.cpu_count() or 1
        self._context = context
        self._timeout = timeout

    @cached_property
    def version(self) -> str:
        """Version that `--version` prints, such as `10040 (3f7c29d)`; "" if it prints none."""
        try:
            done = subprocess.run(
                [self._server, "--version"], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        said = re.search(r"version: (.*)", done.stdout + done.stderr)
        return said.group(1) if said else ""

    @cached_property
    def instruction_sets(self) -> str:
        """Instruction sets in the server's `system_info` line; "" if it prints no such line.

        The server prints the line before it opens its model, so it is started without a real model.
        """
        command = [self._server, "--model", os.devnull, "--port", str(free_port())]
        command += ["--verbosity", "4"]  # newer servers print the line only at this verbosity
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.SubprocessError):
            return ""
        return cpu_features((done.stdout + done.stderr).decode("utf-8", "replace"))

    @property
    def abilities(self) -> frozenset[Need]:
        return frozenset({"grammar", "images"} if self._mmproj else {"grammar"})

    @contextmanager
    def session(self, workload: Workload, size: Size, words: Words) -> Iterator[HttpSession]:
        def command(port: int) -> Sequence[str]:
            return self.command(port, workload.concurrency, "images" in workload.needs)

        with (
            running(self.name, command, "/health", environment=_MARKED) as address,
            opened(self.name, address, DIALECT, workload, words, self._timeout) as session,
        ):
            yield session

    def command(self, port: int, concurrency: int, images: bool = False) -> list[str]:
        """Return the command line: one slot per simultaneous call, and a RAM cache of prompts."""
        parallel = max(concurrency, 1)
        options: dict[str, Any] = {
            "--model": self._model,
            "--host": HOST,
            "--port": port,
            "--threads": self._threads,
            "--parallel": parallel,
            "--ctx-size": parallel * self._context,
            "--cache-ram": _CACHE_MB,
            "--n-gpu-layers": 999 if machine.on_mac() else 0,
        }
        if images:
            options["--mmproj"] = self._mmproj
        return [self._server, *(str(x) for pair in options.items() for x in pair)]


@dataclass(frozen=True)
class LlamaDialect:
    """Dialect of llama-server's `POST /completion`."""

    path: str = "/completion"
    scored_tokens: int = 0
    drops_first_space: bool = False

    def request(self, question: Question) -> dict[str, Any]:
        return {
            "prompt": _prompt(question),
            "n_predict": question.max_tokens,
            "temperature": 0,
            "cache_prompt": True,
            "ignore_eos": question.grammar is None,
            "stream": True,
            "stop": list(question.stop),
            "logit_bias": [[token, bias] for token, bias in question.bias.items()],
            **({"grammar": question.grammar} if question.grammar else {}),
        }

    def text(self, event: Mapping[str, Any]) -> str:
        return str(event.get("content") or "")

    def usage(self, event: Mapping[str, Any]) -> Answer | None:
        if not event.get("stop"):
            return None
        try:
            timings = event.get("timings") or {}
            return Answer(
                int(event["tokens_evaluated"]),
                int(event["tokens_predicted"]),
                int(timings.get("cache_n", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PeerError(f"llama.cpp counts no tokens in {str(event)[:200]}") from error


DIALECT = LlamaDialect()


def _prompt(question: Question) -> Any:
    if not question.images:
        return question.prompt
    files = [base64.b64encode(Path(file).read_bytes()).decode() for file in question.images]
    return {"prompt_string": question.prompt.replace(IMAGE, _MARK), "multimodal_data": files}
