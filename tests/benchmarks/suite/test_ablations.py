"""Each part switched off shows in exact counts, on the workload that it is there for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from sgl_mlx.benchmarks.peers.ours import Ours
from sgl_mlx.benchmarks.suite.ablations import ABLATIONS, ablated
from sgl_mlx.benchmarks.suite.run import Run, run_workload
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Row, Size
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.request.request import wait_all

SIZE = Size(0.05)
Measure = Callable[..., Run]


@pytest.fixture
def run(toy_folder: Path, words: Words) -> Measure:
    """`run(workload, ablation, **options)`; without an ablation all parts are on."""

    def measure(workload: str, ablation: str | None = None, **options: Any) -> Run:
        given = {
            "model_path": str(toy_folder),
            "max_total_tokens": 20000,
            "speculate": "off",
            **options,
        }
        ours = ablated(ablation, given) if ablation else Ours(given)
        found = WORKLOADS[workload]
        return run_workload(ours, found, rows_of(workload, words), SIZE, words)

    return measure


def rows_of(workload: str, words: Words) -> list[Row]:
    return list(WORKLOADS[workload].rows(words, SIZE))


def counts(run: Run) -> Mapping[str, Any]:
    return run.details


TEXT = [name for name, w in WORKLOADS.items() if not w.needs and name != "prefetch"]


@pytest.mark.parametrize("workload", [*TEXT, "json_decode"])
def test_with_all_parts_nearly_nothing_is_computed_twice(run: Measure, workload: str) -> None:
    found = counts(run(workload))
    if found["unique_tokens"] is None:  # documents side by side are more than tokens
        assert workload == "multi_doc_qa"
        return
    best = 1 - found["unique_tokens"] / found["total_tokens"]
    hit = 1 - found["computed_tokens"] / found["total_tokens"]
    assert hit >= 0.98 * best


def test_without_a_cache_every_prompt_token_is_computed(run: Measure) -> None:
    found, whole = counts(run("react", "no-cache")), counts(run("react"))
    assert found["computed_tokens"] == found["total_tokens"]
    assert found["computed_tokens"] > 2 * whole["computed_tokens"]


def test_a_table_finds_whole_prompts_alone(run: Measure) -> None:
    """Few-shot examples are never a whole prompt; the turns of a chat are."""
    shots, tree = counts(run("gsm8k", "no-tree")), counts(run("gsm8k"))
    assert shots["computed_tokens"] == shots["total_tokens"] > 2 * tree["computed_tokens"]
    chat, tree = (counts(run("multi_turn_chat_short", a)) for a in ("no-tree", None))
    assert chat["computed_tokens"] < 1.02 * tree["computed_tokens"] < 0.6 * chat["total_tokens"]


@pytest.mark.parametrize("policy", ["fcfs", "random"])
def test_another_order_computes_more_when_the_pool_is_small(run: Measure, policy: str) -> None:
    """Subtrees come in turn and the pool holds little more than one: longest cached first wins."""
    small = {"max_total_tokens": 150, "max_running_requests": 1}
    found, lpm = (counts(run("overhead", a, **small)) for a in (policy, None))
    assert found["computed_tokens"] > lpm["computed_tokens"]


def test_without_sharing_in_flight_a_burst_computes_its_prefix_again(
    toy_folder: Path, words: Words
) -> None:
    """Requests that are all there before the first step."""
    prefix = words.text(200, "prefix")
    burst = [f"{prefix}\n{words.text(10, f'own {i}')}" for i in range(8)]
    computed = []
    for options in ({}, ABLATIONS["no-in-flight-sharing"].options):
        with Engine(str(toy_folder), max_total_tokens=20000, **options) as engine:
            asked_all, params = Event(), SamplingParams(max_new_tokens=1)
            hold = partial(Event.wait, asked_all)
            holding = Thread(target=engine.run_on_model, args=[lambda _, hold=hold: hold()])
            holding.start()
            futures = [engine.submit((Text(text),), params) for text in burst]
            asked_all.set()
            wait_all(futures)
            holding.join()
            computed.append(engine.get_server_info()["stats"]["computed_tokens"])
    assert computed[0] == len(burst) * 10 + 201
    assert computed[1] > computed[0] + 100


def test_without_the_forks_hint_branches_compute_their_prompt_again(run: Measure) -> None:
    """Where nothing else lets them share: in-flight sharing is off on both sides."""
    found, hinted = (counts(run("llm_judge", a)) for a in ("no-fork-hint", "no-in-flight-sharing"))
    assert found["computed_tokens"] > hinted["computed_tokens"]


def test_without_parallelism_the_same_tokens_take_more_passes(run: Measure) -> None:
    found, parallel = (counts(run("multi_chain", a)) for a in ("no-parallelism", None))
    assert found["decode_tokens"] == parallel["decode_tokens"]
    assert found["decode_passes"] > 2 * parallel["decode_passes"]


def test_without_shared_attention_rows_read_their_prefixes_each(run: Measure) -> None:
    found, shared = (counts(run("gsm8k", a)) for a in ("no-extend", None))
    assert found["decode_tokens"] == shared["decode_tokens"]
    assert found["pool_tokens_read"] > 1.2 * shared["pool_tokens_read"]


def test_without_chunks_a_step_is_as_long_as_a_prompt(run: Measure) -> None:
    found, chunked = (counts(run("long_doc_json", a)) for a in ("no-chunked-prefill", None))
    assert chunked["longest_step"] == 512 < found["longest_step"]
    assert found["computed_tokens"] == chunked["computed_tokens"]


def test_what_an_ablation_shows_is_counted(run: Measure) -> None:
    found = counts(run("mmlu"))
    assert {ablation.shows for ablation in ABLATIONS.values()} <= set(found)


def test_an_ablation_that_there_is_not_is_named() -> None:
    with pytest.raises(BenchmarkError, match="no ablation 'no-tre'; there are no-cache, no-tree"):
        ablated("no-tre", {})
