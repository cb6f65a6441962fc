"""Prefixes that one API key, salt or extra key computed are never hits for another."""

from __future__ import annotations

from itertools import product
from typing import Any

import httpx
import pytest

from sgl_mlx.core import Generated
from sgl_mlx.runtime.engine import Engine

LONG = "The same words stand in every prompt of this test, again and again. " * 4
OWNERS = [
    {
        "key": key,
        **({"cache_salt": salt} if salt else {}),
        **({"extra_key": extra} if extra else {}),
    }
    for key, salt, extra in product(("first", "second"), ("", "a"), ("", "a"))
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": LONG, "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
    "/v1/responses": {"input": LONG, "max_output_tokens": 1},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
    "/generate": {"text": LONG, "sampling_params": {"max_new_tokens": 1}},
}


def ask(client: httpx.Client, url: str, body: dict[str, Any], owner: dict[str, str]) -> str:
    keys = {k: v for k, v in owner.items() if k != "key"}
    headers = {"authorization": f"Bearer {owner['key']}"}
    answer = client.post(url, json={**body, **keys}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-sgl-cache"]


def hits(told: str) -> int:
    return int(told.removeprefix("hit=").split("/")[0])


@pytest.mark.parametrize("path", BODIES)
def test_owners_share_nothing_and_find_their_own(
    toy_engine: Engine, serve: Any, client: httpx.Client, path: str
) -> None:
    toy_engine.flush_cache()
    url = serve(toy_engine, api_keys=["first", "second"]) + path
    for owner in OWNERS:
        told = ask(client, url, BODIES[path], owner)
        assert told.startswith("hit=0/")
        assert told.endswith(";miss_at=0;because=first")
    for owner in OWNERS[:2]:
        assert hits(ask(client, url, BODIES[path], owner)) >= 250


def test_clients_of_a_server_without_keys_share(
    toy_engine: Engine, serve: Any, client: httpx.Client
) -> None:
    """Whatever key they send: many clients send a made-up one."""
    toy_engine.flush_cache()
    url = serve(toy_engine) + "/v1/completions"
    first, second = (
        hits(ask(client, url, BODIES["/v1/completions"], {"key": key})) for key in ("x", "y")
    )
    assert first == 0
    assert second >= 250


def test_an_answer_is_remembered_for_its_own_key_only(script: Any, client: httpx.Client) -> None:
    engine, url = script("Yes", api_keys=["first", "second"])
    messages: list[dict[str, str]] = [{"role": "user", "content": "Is it?"}]
    turns = [*messages, {"role": "assistant", "content": "Yes"}, *messages]
    for key, body in (("first", messages), ("second", turns), ("first", turns)):
        ask(client, f"{url}/v1/chat/completions", {"messages": body}, {"key": key})
    own = [any(isinstance(p, Generated) for p in call.prompt) for call in engine.calls]
    assert own == [False, False, True]
    assert len({k["extra_key"] for k in engine.keywords}) == 2
