"""`sgl-mlx bench serve` and `bench suite --ours http`: our server does its peers' work."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from sgl_mlx.benchmarks.peers.our_server import OurServer
from sgl_mlx.benchmarks.peers.ours import Ours
from sgl_mlx.benchmarks.suite.run import run_workload
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from sgl_mlx.tokenizer import Tokenizer
from tests.benchmarks.toy_words import write_toy
from tests.cli.bench.test_suite import assert_interrupted_it_ends_its_servers

Sgl = Callable[..., Result]
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SMALL = ["--scale", "0.01", "--json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_toy(tmp_path_factory.mktemp("models") / "words")
    settings = folder / "tokenizer_config.json"
    told = {**json.loads(settings.read_text()), "chat_template": PLAIN}
    settings.write_text(json.dumps(told))
    return str(folder)


def test_our_server_and_a_peer_hold_the_same_conversations(sgl: Sgl, model: str) -> None:
    peers = ["--peer", "mlx-lm", "--peer", "llama.cpp"]
    done = sgl("bench", "serve", "--model", model, *peers, "--at", "1", "--at", "3", *SMALL)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(row["trace"], row["at_once"]) for row in rows] == [
        *(("chat", 1), ("chat", 3), ("agent", 1), ("agent", 3))
    ]
    for row in rows:
        assert set(row["ratio"]) == {"mlx-lm"}, row["not_compared"]
        assert "runs GGUF files" in row["not_compared"]["llama.cpp"]
        ours, theirs = row["runs"]
        for count in ("requests", "prompt_tokens", "output_tokens"):
            assert ours[count] == theirs[count] > 0
        assert ours["ttft_p50"] <= ours["ttft_p99"]
        means = [run["ttft_mean"] for run in (ours, theirs)]
        assert row["ttft_mean_ratio"]["mlx-lm"] == pytest.approx(
            means[0] / means[1], rel=0.02, abs=0.002
        )
    chat, _, agent, _ = (row["runs"][0] for row in rows)
    assert agent["hit_rate"] > 0.5  # all but the first find the instructions
    assert chat["hit_rate"] > 0.3


def test_it_prints_a_table_and_ends_with_a_json_line(sgl: Sgl, model: str) -> None:
    done = sgl(
        "bench", "serve", "--model", model, "--at", "2", "--trace", "chat", "--scale", "0.01"
    )
    assert "conversations over HTTP" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["rows"][0]["trace"] == "chat"


def test_a_server_that_does_not_run_is_reported(sgl: Sgl, model: str) -> None:
    away = ["--url", "http://127.0.0.1:9", "--no-ours"]
    done = sgl("bench", "serve", "--model", model, *away, "--at", "1", "--trace", "chat", *SMALL)
    [row] = json.loads(done.stdout)["rows"]
    assert row["runs"] == []
    assert "http://127.0.0.1:9" in done.stderr


def test_nothing_to_measure_is_an_error(sgl: Sgl) -> None:
    done = sgl("bench", "serve", "--no-ours")
    assert done.exit_code == 2
    assert "add --url or --peer" in done.output


@pytest.mark.parametrize("name", ["multi_chain", "hellaswag", "json_decode"])
def test_the_suite_over_http_does_the_work_of_the_engine(model: str, name: str) -> None:
    size, words = Size(0.01), Words(Tokenizer.from_file(Path(model)))
    workload = WORKLOADS[name]
    rows = workload.rows(words, size)
    inside = run_workload(Ours({"model_path": model}), workload, rows, size, words)
    outside = run_workload(OurServer({"model_path": model}), workload, rows, size, words)
    assert outside.work == inside.work
    assert outside.work["calls"] > 1


def test_the_suite_runs_our_server_when_asked(sgl: Sgl, model: str) -> None:
    done = sgl("bench", "suite", "mmlu", "--ours", "http", "--model", model, *SMALL)
    assert done.exit_code == 0, done.output
    [row] = json.loads(done.stdout)["workloads"]
    assert row["tokens"]["ours"]["calls"] == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_servers(model: str, sign: signal.Signals) -> None:
    given = ["--at", "4", "--scale", "0.5", "--repeats", "100", "--model", model]
    assert_interrupted_it_ends_its_servers(["serve", "--peer", "mlx-lm", *given], sign)
