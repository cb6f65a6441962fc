"""`/cache` and the header tell what a client's own prompts found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import Text
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server.doctor.history import History
from sgl_mlx.server.doctor.tree import Branch, branches

HEAD = "You help with the weather of many cities, and answer briefly. " * 4


def test_a_date_that_changes_is_found_out(
    toy_engine: Engine, serve: Any, client: httpx.Client, tmp_path: Path
) -> None:
    toy_engine.flush_cache()
    url = serve(toy_engine, cache_log=tmp_path / "log")
    told = []
    for text in (f"It is 10:41. {HEAD}", f"It is 10:41. {HEAD}So?", f"It is 10:42. {HEAD}"):
        body = {"prompt": text, "max_tokens": 1, "stream": len(told) == 0}
        told.append(client.post(f"{url}/v1/completions", json=body).headers["x-sgl-cache"])
    assert [header.split("because=")[1] for header in told] == ["first", "new", "date"]
    assert all(header.startswith("hit=") and "?" not in header for header in told)
    shown = client.get(f"{url}/cache").json()
    [talk] = shown["conversations"][-1:]
    assert len(talk["prompts"]) == 2
    assert talk["prompts"][1]["cached_tokens"] >= len(HEAD)
    assert 0 < shown["hit_rate"] < 1
    assert shown["cost"] > 0
    [tree] = shown["tree"]
    assert tree["text"].startswith("It is 10:4")
    assert len(tree["children"]) == 2
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_key_sees_its_own_prompts_only(script: Any, client: httpx.Client) -> None:
    _, url = script("x", api_keys=["a", "b"])
    own, other = ({"authorization": f"Bearer {key}"} for key in "ab")
    body = {"prompt": "secret words", "cache_salt": "s"}
    client.post(f"{url}/v1/completions", json=body, headers=own)
    for headers, count in ((own, 1), (other, 0)):
        shown = client.get(f"{url}/cache", headers=headers)
        assert len(shown.json()["conversations"]) == count
        assert ("secret" in shown.text) == bool(count)
    assert client.get(f"{url}/cache").status_code == 401


def test_a_prompt_under_way_is_shown(script: Any, client: httpx.Client) -> None:
    engine, url = script("x", manual=True)
    body = {"prompt": "x", "stream": True, "rid": "mine"}
    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        shown = client.get(f"{url}/cache").json()["under_way"]
        assert [one["id"] for one in shown] == ["mine"]
        engine.run_all()
        answer.read()
    assert client.get(f"{url}/cache").json()["under_way"] == []


@given(st.lists(st.text("ab", max_size=6), max_size=8))
def test_the_tree_holds_every_prompt_and_shares_every_prefix(texts: list[str]) -> None:
    history = History()
    seen = [history.add(str(i), "", (Text(text),)) for i, text in enumerate(texts)]
    found: dict[str, str] = {}

    def walk(tree: tuple[Branch, ...], before: str) -> None:
        heads = [branch.text[0] for branch in tree]
        assert len(heads) == len(set(heads))
        for branch in tree:
            for prompt in branch.prompts:
                found[prompt.id] = before + branch.text
            assert all(str(p.content).startswith(before + branch.text) for p in branch.prompts)
            walk(branch.children, before + branch.text)

    walk(branches(seen), "")
    assert found == {str(i): text for i, text in enumerate(texts) if text}
    json.dumps([branch.to_dict() for branch in branches(seen)])
