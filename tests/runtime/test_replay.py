"""An engine's plans, written as text and run by another runner, give the same results."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from sgl_mlx.core import Parallel, SamplingParams, Text
from sgl_mlx.runtime import engine as engine_module
from sgl_mlx.runtime.assembly import open_model
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Extend
from sgl_mlx.runtime.scheduler.wire import from_json
from tests.patience import PATIENCE
from tests.runtime.hybrids import Open as OpenToy
from tests.runtime.hybrids import greedy, text
from tests.runtime.llava import Folders, ask
from tests.runtime.recording import Recording


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Records what the runners of all engines opened from now on do."""
    made = Recording()
    recording_loop = partial(EngineLoop, open_model=made.open)
    monkeypatch.setattr(engine_module, "EngineLoop", recording_loop)
    return made


def fresh_runner(folder: Path | str) -> ModelRunner:
    config = EngineConfig.of({"model_path": str(folder), "max_total_tokens": 1000})
    runner = open_model(config, lambda: None).runner
    assert isinstance(runner, ModelRunner)
    return runner


@pytest.fixture
def toy_that_ends(toy_folder: Path, tmp_path: Path) -> Path:
    """The toy with an end token, which grammars need."""
    folder = Path(shutil.copytree(toy_folder, tmp_path / "toy"))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


REQUESTS = [
    SamplingParams(max_new_tokens=9, temperature=0, ignore_eos=True),
    SamplingParams(max_new_tokens=5, temperature=1.3, top_p=0.8, ignore_eos=True),
    SamplingParams(max_new_tokens=7, temperature=0.9, frequency_penalty=0.7, n=2),
    SamplingParams(max_new_tokens=8, regex="[ab]{3}(cd)+"),
    SamplingParams(max_new_tokens=3, return_logprob=True, logprob_start_len=0, top_logprobs_num=2),
    SamplingParams(max_new_tokens=4, temperature=0, repetition_penalty=1.4, logit_bias=((5, 2.0),)),
]


def test_plans_of_text_run_elsewhere_give_the_same_results(
    toy_that_ends: Path, recording: Recording
) -> None:
    with Engine(str(toy_that_ends), max_total_tokens=1000, chunked_prefill_size=24) as engine:
        prompts = [(Text(f"some words that all have in common {i}"),) for i in range(5)]
        prompts.append((Text("ab"), Parallel(((Text("c d"),), (Text("e"),))), Text("f")))
        futures = [engine.submit(p, q) for p, q in zip(prompts, REQUESTS, strict=True)]
        for future in [*futures, engine.score(prompts[0], ["yes", "no"])]:
            future.result(PATIENCE)
        for future in [engine.submit(p, REQUESTS[0]) for p in prompts]:
            future.result(PATIENCE)
    kinds = [type(from_json(plan)) for plan, _ in recording.steps]
    assert {Extend, Decode} == set(kinds)
    assert any(recording.masks)
    assert recording.replay(fresh_runner(toy_that_ends)) == len(kinds) > 10


@pytest.mark.parametrize("kind", ["qwen3_next", "mamba"])
def test_plans_of_recurrent_layers_run_elsewhere_give_the_same_results(
    kind: str, recording: Recording, open_toy: OpenToy
) -> None:
    engine = open_toy(kind, max_total_tokens=1000, max_total_states=4)
    for seed in (0, 1, 0):
        greedy(engine, [text(seed, 20 + 9 * i) for i in range(6)], 5)
    assert engine.get_server_info()["stats"]["snapshots_evicted"] > 0
    assert recording.replay(fresh_runner(kind)) > 10


def test_plans_with_pictures_run_elsewhere_give_the_same_results(
    llava_folder: Folders, recording: Recording
) -> None:
    folder = llava_folder("llava")
    params = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)
    with Engine(str(folder), max_total_tokens=1000, chunked_prefill_size=9) as engine:
        for future in [engine.submit(ask(n), params) for n in (1, 2, 1)]:
            future.result(PATIENCE)
    assert len(recording.images) == 2
    assert recording.replay(fresh_runner(folder)) > 4
