"""Requests made ahead are handed to the body that asks the same, and to nobody else."""

from __future__ import annotations

from typing import Any

from sgl_mlx.compiler.running.replay import Ahead, Asked, Following
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.testing import ScriptedBackend

PROMPT = (Text("a"),)
PARAMS = SamplingParams()


def pair(backend: ScriptedBackend) -> tuple[Any, Any]:
    asked: Asked = {}
    return Ahead(backend, asked), Following(backend, asked, None)  # type: ignore[arg-type]


def test_an_equal_request_is_not_made_again() -> None:
    backend = ScriptedBackend([" one", " two"])
    ahead, following = pair(backend)
    early = ahead.submit(PROMPT, PARAMS).result()
    assert following.submit(PROMPT, PARAMS).result() == early
    assert following.submit(PROMPT, PARAMS).result()[0].text == " two"
    assert len(backend.calls) == 2


def test_another_prompt_or_parameter_is_another_request() -> None:
    backend = ScriptedBackend(" one")
    ahead, following = pair(backend)
    ahead.submit(PROMPT, PARAMS)
    following.submit((Text("b"),), PARAMS)
    following.submit(PROMPT, SamplingParams(temperature=0.5))
    following.score(PROMPT, ("x",))
    following.prefill(PROMPT)
    assert len(backend.calls) == 5


def test_scores_and_prefills_are_handed_over_too() -> None:
    backend = ScriptedBackend()
    ahead, following = pair(backend)
    ahead.score(PROMPT, ("x", "y"), True), ahead.prefill(PROMPT)
    following.score(PROMPT, ["x", "y"], True), following.prefill(PROMPT)
    assert [call.kind for call in backend.calls] == ["score", "prefill"]


def test_cancelling_ahead_cancels_only_what_nobody_has_taken() -> None:
    backend = ScriptedBackend(" one", manual=True)
    ahead, following = pair(backend)
    taken, left = ahead.submit(PROMPT, PARAMS), ahead.submit((Text("b"),), PARAMS)
    own = following.submit(PROMPT, PARAMS)
    taken.cancel(), left.cancel()
    backend.run_all()
    assert own.result()[0].text == " one"
    assert backend.calls[1].future.cancelled()


def test_what_is_cancelled_below_is_cancelled_above() -> None:
    backend = ScriptedBackend(" one", manual=True)
    ahead, following = pair(backend)
    relay = ahead.submit(PROMPT, PARAMS)
    following.submit(PROMPT, PARAMS).cancel()
    assert relay.cancelled()


def test_errors_reach_both() -> None:
    ahead, following = pair(ScriptedBackend([ValueError("boom")]))
    relay, own = ahead.submit(PROMPT, PARAMS), following.submit(PROMPT, PARAMS)
    assert relay.exception() is own.exception()


def test_everything_else_is_the_backends() -> None:
    backend = ScriptedBackend(model_name="tiny", supports_parallel=False)
    _, following = pair(backend)
    assert (following.model_name, following.supports_parallel) == ("tiny", False)
