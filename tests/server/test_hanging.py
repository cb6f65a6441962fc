"""Over HTTP, an engine that hangs is red and refuses; it is green again once its step has ended."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Plan, StepResult
from tests.patience import PATIENCE
from tests.runtime.conftest import MakeEngine, make_engine, toy_folder

__all__ = ["make_engine", "toy_folder"]

ASKED = {"text": "ab", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}


def test_health_is_red_while_the_engine_hangs(
    make_engine: MakeEngine, serve: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(watchdog_seconds=0.3)
    url = serve(engine)
    right = client.post(f"{url}/generate", json=ASKED).json()["text"]
    assert client.get(f"{url}/health").status_code == 200
    gate, run = threading.Event(), ModelRunner.run

    def hang(runner: ModelRunner, plan: Plan) -> StepResult:
        gate.wait(PATIENCE)
        return run(runner, plan)

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "run", hang)
        for stream in (False, True):
            answer = client.post(f"{url}/generate", json={**ASKED, "stream": stream})
            assert answer.status_code == 503
            assert "the engine hangs" in answer.text
        answer = client.get(f"{url}/health")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")
        gate.set()
        while client.get(f"{url}/health").status_code != 200:
            pass
    assert client.post(f"{url}/generate", json=ASKED).json()["text"] == right
