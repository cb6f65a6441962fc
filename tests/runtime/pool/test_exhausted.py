"""A step too large for the GPU is taken again with fewer rows; only what never fits ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sgl_mlx.errors import RequestAborted
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.exhausted import cause
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, StepResult
from tests.runtime.conftest import MakeEngine

METAL = "[METAL] Command buffer execution failed: "
OUT_OF_MEMORY = f"{METAL}Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
TOO_LONG = (
    f"{METAL}Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
)
REFUSED = (
    "[metal::malloc] Attempting to allocate 21474836480 bytes which is greater than the maximum "
    "allowed buffer size of 9663676416 bytes."
)
PROMPTS = [[3 + (i * 17 + j) % 250 for j in range(20 + 30 * i)] for i in range(6)]
ASKED = {"max_new_tokens": 9, "temperature": 0, "ignore_eos": True}


class SmallGpu:
    """A runner's `run` that fails where a plan has too many rows, or one row is too long."""

    def __init__(self, patch: pytest.MonkeyPatch, rows: int, length: int = 10**6) -> None:
        self.failures = 0
        run = ModelRunner.run

        def limited(runner: ModelRunner, plan: Plan) -> StepResult:
            found = plan.opening if isinstance(plan, Decode) else plan.rows
            longest = max((row.position + len(row.tokens) for row in found), default=0)
            if len(found) > rows or longest > length:
                self.failures += 1
                raise RuntimeError(OUT_OF_MEMORY)
            return run(runner, plan)

        patch.setattr(ModelRunner, "run", limited)


def answers(engine: Engine) -> list[Any]:
    found = engine.generate(input_ids=PROMPTS, sampling_params=ASKED)
    return [answer["output_ids"] for answer in found]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_requests_run_again_in_smaller_batches(
    rows: int, make_engine: MakeEngine, toy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answers(toy)
    gpu = SmallGpu(monkeypatch, rows)
    engine = make_engine()
    assert answers(engine) == right
    assert 1 <= gpu.failures <= 4
    before = gpu.failures
    assert answers(engine) == right
    assert gpu.failures == before  # the batch stays small


def test_one_that_never_fits_ends_with_the_numbers_and_the_others_finish(
    make_engine: MakeEngine, toy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answers(toy)
    SmallGpu(monkeypatch, 10, length=len(PROMPTS[-1]) - 1)
    engine = make_engine()
    with ThreadPoolExecutor(len(PROMPTS)) as callers:
        calls = [
            callers.submit(engine.generate, input_ids=prompt, sampling_params=ASKED)
            for prompt in PROMPTS
        ]
    assert [call.result()["output_ids"] for call in calls[:-1]] == right[:-1]
    with pytest.raises(RequestAborted, match="the GPU ran out of memory, with 1 running") as raised:
        calls[-1].result()
    assert "GiB are in use" in str(raised.value)


def test_another_error_is_not_taken_for_a_lack_of_memory(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(runner: ModelRunner, plan: Plan) -> StepResult:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(ModelRunner, "run", fails)
    with pytest.raises(RequestAborted, match="the step failed: RuntimeError: shapes"):
        make_engine().generate(input_ids=PROMPTS[0], sampling_params=ASKED)


def test_metals_texts_become_plain_words() -> None:
    assert cause(RuntimeError(OUT_OF_MEMORY)) == "the GPU ran out of memory"
    assert "drawing the screen" in str(cause(RuntimeError(TOO_LONG)))
    assert cause(RuntimeError(REFUSED)) == (
        "the GPU has no room for a buffer of 20.00 GiB (at most 9.00 GiB)"
    )
    assert cause(RuntimeError("[malloc] Unable to allocate 1073741824 bytes.")) == (
        "the GPU has no room for a buffer of 1.00 GiB"
    )
    assert cause(RuntimeError("[matmul] shapes do not match")) is None
