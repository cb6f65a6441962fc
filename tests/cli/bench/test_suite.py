"""`sgl-mlx bench suite` runs to its end whatever its peers do, and leaves nothing running."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import Result

from tests.benchmarks.suite.example import document
from tests.benchmarks.toy_words import write_toy
from tests.patience import PATIENCE, eventually

Sgl = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy(tmp_path_factory.mktemp("models") / "words"))


def test_it_prints_a_table_writes_a_page_and_ends_with_a_json_line(
    sgl: Sgl, model: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    peers = ["--peer", "mlx-lm", "--peer", "llama.cpp", "--ablation", "no-cache"]
    size = ["--scale", "0.01", "--model", model, "--html", str(page)]
    done = sgl("bench", "suite", "gsm8k", "hellaswag", *peers, *size)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert [row["name"] for row in document["workloads"]] == ["hellaswag", "gsm8k"]
    for row in document["workloads"]:
        assert set(row["ratio"]) == {"mlx-lm", "no-cache"}
        assert row["tokens"]["mlx-lm"] == row["tokens"]["ours"]
        assert "runs GGUF files" in row["not_compared"]["llama.cpp"]
    assert set(document["geomean"]) == {"mlx-lm", "no-cache"}
    assert "hellaswag" in page.read_text("utf-8")


def test_with_json_it_prints_nothing_else(sgl: Sgl, model: str) -> None:
    done = sgl("bench", "suite", "mmlu", "--scale", "0.01", "--model", model, "--json")
    assert json.loads(done.stdout)["workloads"][0]["name"] == "mmlu"


def test_a_llama_server_that_is_not_there_is_reported_and_the_rest_goes_on(
    sgl: Sgl, model: str, tmp_path: Path
) -> None:
    given = ["--peer", "llama.cpp", "--llama-server", str(tmp_path / "none")]
    done = sgl("bench", "suite", "mmlu", *given, "--scale", "0.01", "--model", model, "--json")
    [row] = json.loads(done.stdout)["workloads"]
    assert row["not_compared"]["llama.cpp"]
    assert row["tokens"]["ours"]["calls"] == 2


def test_workloads_and_ablations_are_listed(sgl: Sgl) -> None:
    done = sgl("bench", "suite", "--list")
    assert "multi_turn_chat_long" in done.stdout
    assert "no-in-flight-sharing" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no workload is called nothing"),
        (["--scale", "0"], "0.0 is not in the range x>0"),
        (["mmlu", "--ablation", "x"], "no ablation 'x'"),
        (["llava_bench", "--tower", "x"], "no tower is called x"),
        (["--peer", "vllm"], "'vllm' is not one of"),
    ],
)
def test_a_wrong_word_is_named(sgl: Sgl, model: str, arguments: list[str], message: str) -> None:
    done = sgl("bench", "suite", *arguments, "--model", model)
    assert done.exit_code != 0
    assert message in done.stderr


def servers_of(process: int) -> list[int]:
    """The launchers and servers below a process, whichever thread started them."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # threads end meanwhile
            found += [int(child) for child in task.read_text().split()]
    launchers = [child for child in found if b"mlx_lm_server" in command_line(child)]
    return [each for child in launchers for each in (child, *servers_of(child))]


def command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_ends_its_servers(model: str, sign: signal.Signals) -> None:
    given = ["multi_turn_chat_short", "--scale", "0.02", "--repeats", "100", "--model", model]
    assert_interrupted_it_ends_its_servers(["suite", *given, "--peer", "mlx-lm"], sign)


def assert_interrupted_it_ends_its_servers(bench: list[str], sign: signal.Signals) -> None:
    """Start `sgl-mlx bench`, interrupt it while mlx-lm's server runs, and look what is left."""
    command = [sys.executable, "-c", "from sgl_mlx.cli import main; main()", "bench", *bench]
    default = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=default
    ) as process:
        servers: list[int] = []
        deadline = time.monotonic() + PATIENCE
        while len(servers) < 2:  # a launcher and its server
            assert process.poll() is None
            assert time.monotonic() < deadline, "no server was started"
            servers = servers_of(process.pid)
        process.send_signal(sign)
        process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    left = lambda: [x for x in servers if b"mlx_lm_server" in command_line(x)]  # noqa: E731
    eventually(lambda: not left(), "no server is left")


def test_data_of_the_users_is_run(sgl: Sgl, model: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "Why?", "tokens": 2}\n{"tokens": 5}\n')
    done = sgl("bench", "suite", "gsm8k", "--scale", "0.01", "--model", model, "--data", str(file))
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout.splitlines()[-1])["workloads"][0]
    assert row["tokens"]["ours"]["calls"] == 2
    assert row["tokens"]["ours"]["output_tokens"] == 7


def test_data_is_for_one_workload(sgl: Sgl, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("{}")
    done = sgl("bench", "suite", "--data", str(file))
    assert done.exit_code == 2
    assert "name it" in done.output


# -- reports of an earlier run ----------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> str:
    file = tmp_path / "earlier.json"
    file.write_text(f"a table\n{json.dumps(document())}\n", "utf-8")
    return str(file)


def test_an_earlier_run_is_reported_again_without_a_model(
    sgl: Sgl, earlier: str, tmp_path: Path
) -> None:
    svg, page = tmp_path / "plot.svg", tmp_path / "page.html"
    done = sgl("bench", "suite", "--from", earlier, "--svg", str(svg), "--html", str(page))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == document()
    for report in (done.stdout, svg.read_text("utf-8"), page.read_text("utf-8")):
        assert "mmlu" in report
        assert "2.91x" in report


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["mmlu"], "WORKLOAD"),
        (["--scale", "0.1"], "--scale"),
        (["--peer", "mlx-lm"], "--peer"),
        (["--kv-bits", "8"], "--kv-bits"),
        (["--model", "x"], "--model"),
    ],
)
def test_options_of_a_run_beside_an_earlier_one_are_refused(
    sgl: Sgl, earlier: str, arguments: list[str], named: str
) -> None:
    done = sgl("bench", "suite", *arguments, "--from", earlier)
    assert done.exit_code == 2
    assert named in done.stderr.splitlines()[-1]
    assert "--from runs nothing" in done.stderr
