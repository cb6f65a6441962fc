"""A running server, and sglang-router before several, as our side of the suite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from sgl_mlx.benchmarks.peers.ours import Ours
from sgl_mlx.benchmarks.peers.served import Served
from sgl_mlx.benchmarks.peers.system import PeerError
from sgl_mlx.benchmarks.suite.run import Run, run_workload
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import app
from sgl_mlx.tokenizer import Tokenizer
from tests.cli.conftest import sgl
from tests.server.conftest import ThreadServer
from tests.server.router import router_over

__all__ = ["sgl"]

SIZE = Size(0.05)
BRANCHING = ("tree_of_thought", "llm_judge", "multi_turn_chat_short", "multi_turn_chat_long")


@pytest.fixture(scope="module")
def urls(toy_folder: Path) -> Iterator[list[str]]:
    """Four servers of the toy."""
    engines = [Engine(str(toy_folder), max_total_tokens=20000) for _ in range(4)]
    servers = [ThreadServer(app(engine, model_names=["toy"])) for engine in engines]
    for server in servers:
        server.open()
    yield [server.url for server in servers]
    for server, engine in zip(servers, engines, strict=True):
        server.close()
        engine.shutdown()


@pytest.fixture(scope="module")
def run(toy_folder: Path, words: Words) -> Callable[..., Run]:
    """`run(url, name, programs)` runs a workload on the server, or without one in process."""
    tokenizer = Tokenizer.from_file(toy_folder)

    def _run(url: str | None, name: str, programs: bool = True) -> Run:
        options = {"model_path": str(toy_folder)}
        system: Any = Ours(options) if url is None else Served(url, tokenizer, programs)
        workload = WORKLOADS[name]
        return run_workload(system, workload, workload.rows(words, SIZE), SIZE, words)

    return _run


@pytest.mark.parametrize("name", ["tree_of_thought", "hellaswag", "json_decode"])
def test_a_server_does_the_work_of_the_engine(urls: Any, run: Any, name: str) -> None:
    inside, programs, versions = run(None, name), run(urls[0], name), run(urls[0], name, False)
    assert programs.work == versions.work == inside.work
    assert programs.details["computed_tokens"] > 0


@pytest.fixture(scope="module")
def alone(urls: Any, run: Any) -> dict[str, float]:
    """The hit rate of one worker, by workload."""
    return {name: run(urls[0], name).details["hit_rate"] for name in BRANCHING}


@pytest.mark.parametrize("count", [2, 4])
def test_forks_and_turns_land_where_their_prefix_lies(
    urls: Any, run: Any, alone: dict[str, float], tmp_path: Path, count: int
) -> None:
    with router_over(urls[:count], tmp_path / "log") as router:
        rates = {name: run(router.url, name).details["hit_rate"] for name in BRANCHING}
    for name in BRANCHING:
        assert rates[name] >= 0.95 * alone[name] > 0.4, (name, rates, alone)


def test_the_command_runs_on_a_server(
    sgl: Callable[..., Result], urls: Any, toy_folder: Any
) -> None:
    given = ["--model", str(toy_folder), "--scale", "0.02", "--json"]
    for more in ([], ["--ours", "http"]):
        done = sgl("bench", "suite", "llm_judge", "--backend", urls[0], *more, *given)
        assert done.exit_code == 0, done.output
        [row] = json.loads(done.stdout)["workloads"]
        assert 0 < row["runs"][0]["hit_rate"] < 1


def test_a_server_that_is_not_there_is_named(run: Any) -> None:
    with pytest.raises(PeerError, match=r"127\.0\.0\.1:9"):
        run("http://127.0.0.1:9", "llm_judge")
