"""mlx-lm's own server does the same work as our engine, call by call."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_mlx.benchmarks.peers.mlx_lm import DIALECT, MlxLm
from sgl_mlx.benchmarks.peers.ours import Ours
from sgl_mlx.benchmarks.peers.system import PeerError
from sgl_mlx.benchmarks.suite.run import run_workload
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size

SIZE = Size(0.01)


@pytest.mark.parametrize("name", ["multi_chain", "hellaswag"])
def test_it_does_the_work_that_our_engine_does(toy_folder: Path, words: Words, name: str) -> None:
    workload = WORKLOADS[name]
    rows = workload.rows(words, SIZE)
    ours = run_workload(Ours({"model_path": str(toy_folder)}), workload, rows, SIZE, words)
    theirs = run_workload(MlxLm(str(toy_folder)), workload, rows, SIZE, words)
    assert theirs.work == ours.work
    assert theirs.work["calls"] > 1


@pytest.mark.parametrize("usage", [{"prompt_tokens": 1}, {"prompt_tokens": "x"}, 5])
def test_counts_that_are_none_are_an_error(usage: object) -> None:
    with pytest.raises(PeerError, match="counts no tokens"):
        DIALECT.usage({"usage": usage})


def test_an_event_without_choices_is_an_error() -> None:
    with pytest.raises(PeerError, match="no choices"):
        DIALECT.text({"choices": None})
