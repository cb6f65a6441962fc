"""Without kernels the runtime answers the same, on plain MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sgl_mlx.metal_kernels.mode import VARIABLE
from sgl_mlx.runtime.engine import Engine

pytestmark = pytest.mark.usefixtures("cpu_kernels")

RANDOM = np.random.default_rng(8)
SHARED = RANDOM.integers(3, 288, 80).tolist()
PROMPTS = [[*SHARED, *RANDOM.integers(3, 288, n).tolist()] for n in (1, 40, 7, 90, 3)]


def answers(engine: Engine, **params: Any) -> list[Any]:
    asked = {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True, **params}
    engine.generate(input_ids=SHARED, sampling_params={"max_new_tokens": 0})
    return [a["output_ids"] for a in engine.generate(input_ids=PROMPTS, sampling_params=asked)]


@pytest.mark.parametrize(
    "options", [{}, {"kv_bits": 8}, {"chunked_prefill_size": 17}, {"max_running_requests": 2}]
)
def test_answers_are_those_with_kernels(
    options: dict[str, Any], make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = answers(make_engine(**options))
    monkeypatch.setenv(VARIABLE, "off")
    assert answers(make_engine(**options)) == compiled


def test_attention_goes_where_it_was_said(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(engine: Engine) -> int:
        answers(engine)
        return int(engine.get_server_info()["stats"]["pool_tokens_read"])

    assert read(make_engine()) == 0  # keys are attended where they lie
    assert read(make_engine(shared_attention=False)) > 0
    monkeypatch.setenv(VARIABLE, "off")
    assert read(make_engine()) > 0
