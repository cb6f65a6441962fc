"""llama-server is found, asked its way, believed when it counts, and ended whatever it does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_mlx import machine
from sgl_mlx.benchmarks.peers import llama_cpp, server
from sgl_mlx.benchmarks.peers.llama_cpp import LlamaCpp, cpu_features, find_server
from sgl_mlx.benchmarks.peers.system import PeerError
from sgl_mlx.benchmarks.suite.run import Run, run_workload
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size

SIZE = Size(0.02)
Fake = Callable[[str], Path]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Process and port of each server that was ended."""
    ended: list[tuple[int, int]] = []
    end = server.end

    def remember(process: object) -> None:
        end(process)  # type: ignore[arg-type]
        arguments = process.args  # type: ignore[attr-defined]
        port = int(arguments[arguments.index("--port") + 1])
        ended.append((process.pid, port))  # type: ignore[attr-defined]

    monkeypatch.setattr(server, "end", remember)
    return ended


def measure(program: Path, words: Words, workload: str = "llm_judge", timeout: float = 60) -> Run:
    peer = LlamaCpp("model.gguf", str(program), timeout=timeout)
    found = WORKLOADS[workload]
    return run_workload(peer, found, found.rows(words, SIZE), SIZE, words)


def assert_nothing_is_left(started: list[tuple[int, int]]) -> None:
    [(process, port)] = started
    with pytest.raises(ProcessLookupError):
        os.killpg(process, 0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((server.HOST, port))


@pytest.mark.parametrize("fault", ["", "resets"])
def test_a_run_counts_what_the_server_says(
    fake_server: Fake, words: Words, started: list[tuple[int, int]], fault: str
) -> None:
    run = measure(fake_server(fault), words)
    assert run.work["calls"] == 4 * 7
    assert run.work["output_tokens"] == 4 * (6 * SIZE.tokens(128) + 2)
    assert len(run.latencies) == run.programs == 4
    assert_nothing_is_left(started)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("exits", "died with exit code 1: error: unknown model architecture"),
        ("dies", "died with exit code 3: out of memory, or so"),
        ("garbage", "sent no JSON but ' {nothing'"),
        ("html", "sent no stream of events but '<html>It works!</html>'"),
        ("refuses", "refused a request with status 400: .*no"),
        ("uncounted", "counts no tokens in"),
    ],
)
def test_a_server_that_fails_is_named_with_its_last_words_and_ended(
    fake_server: Fake, words: Words, started: list[tuple[int, int]], fault: str, message: str
) -> None:
    with pytest.raises(PeerError, match=f"llama.cpp {message}"):
        measure(fake_server(fault), words)
    assert_nothing_is_left(started)


def test_a_server_that_hangs_is_not_waited_for(
    fake_server: Fake, words: Words, started: list[tuple[int, int]]
) -> None:
    with pytest.raises(PeerError, match=r"hangs: it sent nothing for 1\.0 s"):
        measure(fake_server("hangs"), words, timeout=1.0)
    assert_nothing_is_left(started)


def test_a_server_that_never_comes_up_is_not_waited_for(
    fake_server: Fake, started: list[tuple[int, int]]
) -> None:
    command = lambda port: [str(fake_server("sick")), "--port", str(port)]  # noqa: E731
    with (
        pytest.raises(PeerError, match="was not up after 1 s"),
        server.running("llama.cpp", command, "/health", start_timeout=1.0),
    ):
        pass
    assert_nothing_is_left(started)


def test_a_program_that_is_none_cannot_be_started(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("no program")
    program.chmod(0o755)
    with (
        pytest.raises(PeerError, match="cannot be started: "),
        server.running("llama.cpp", lambda port: [str(program)], "/health"),
    ):
        pass


def test_interrupted_it_is_ended_too(
    fake_server: Fake, words: Words, started: list[tuple[int, int]]
) -> None:
    peer = LlamaCpp("model.gguf", str(fake_server("")))
    with (
        pytest.raises(KeyboardInterrupt),
        peer.session(WORKLOADS["mmlu"], SIZE, words),
    ):
        raise KeyboardInterrupt
    assert_nothing_is_left(started)


# -- finding and starting ---------------------------------------------------------------------


def on(system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is on PATH, and this is such a system."""
    monkeypatch.setattr(machine, "system", lambda: system)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(llama_cpp, "_HOMEBREW", (str(tmp_path / "brew"),))


def install(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


def test_it_is_found_on_path_then_from_homebrew_then_where_our_script_builds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on("darwin", monkeypatch, tmp_path)
    built = install(tmp_path / "cache" / "sgl-mlx" / "llama.cpp")
    assert find_server() == built
    brewed = install(tmp_path / "brew")
    assert find_server() == brewed
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_server() == brewed
    on_path = install(tmp_path / "bin")
    assert find_server() == on_path
    assert find_server(brewed) == brewed


@pytest.mark.parametrize(
    ("system", "remedy"),
    [("darwin", "brew install llama.cpp"), ("linux", "benchmarks/peers/build_llama_cpp.sh")],
)
def test_where_there_is_none_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, remedy: str
) -> None:
    on(system, monkeypatch, tmp_path)
    with pytest.raises(PeerError, match=remedy):
        find_server()
    with pytest.raises(PeerError, match="nowhere: no program there"):
        find_server(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("system", "layers"), [("darwin", "999"), ("linux", "0")])
def test_on_a_mac_it_runs_on_metal_without_a_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, layers: str
) -> None:
    monkeypatch.setattr(machine, "system", lambda: system)
    peer = LlamaCpp("model.gguf", install(tmp_path), "eyes.gguf", threads=2, context=100)
    command = peer.command(4711, 8)
    assert command[command.index("--n-gpu-layers") + 1] == layers
    assert command[command.index("--parallel") + 1] == "8"
    assert command[command.index("--ctx-size") + 1] == "800"
    assert "--mmproj" not in command
    assert "eyes.gguf" in peer.command(4711, 8, images=True)


def test_it_runs_gguf_files_alone() -> None:
    with pytest.raises(PeerError, match="runs GGUF files, and models/x is none"):
        LlamaCpp("models/x")


# -- instruction sets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 | AVX = 1 | "
            "AVX512 = 0 | AMX_INT8 = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | ",
            "SSE3 AVX AMX_INT8",
        ),
        (
            "system_info: n_threads = 8 / 10 | Metal : EMBED_LIBRARY = 1 | CPU : NEON = 1 | "
            "ARM_FMA = 1 | ACCELERATE = 1 | BLAS : BLAS_SIZE = 4 | ",
            "NEON ARM_FMA",
        ),
        ("system_info: n_threads = 8", ""),
        ("build: 1 with cc", ""),
    ],
)
def test_instruction_sets_are_those_of_the_cpu_in_system_info(line: str, found: str) -> None:
    assert cpu_features(f"build: 6451\n{line}\nmain: binding port\n") == found


def test_the_server_is_asked_for_its_instruction_sets(tmp_path: Path) -> None:
    program = Path(install(tmp_path))
    program.write_text("#!/bin/sh\necho 'system_info: x | CPU : AVX2 = 1 | ' >&2; exit 1\n")
    assert LlamaCpp("model.gguf", str(program)).instruction_sets == "AVX2"
    program.write_text("no program")
    assert LlamaCpp("model.gguf", str(program)).instruction_sets == ""
