"""Contexts over HTTP: created, forked, extended, joined, chosen from, pinned, expired."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from sgl_mlx.core import Generated, Parallel, Shift, Text
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server.contexts import pins
from tests.patience import PATIENCE, eventually
from tests.server.conftest import events

Script = Any
Post = Callable[..., Any]
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]


@pytest.fixture
def post(client: httpx.Client) -> Post:
    """`post(url, **body)` returns the JSON of a 200 answer."""

    def _post(url: str, **body: Any) -> Any:
        answer = client.post(url, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return _post


def test_a_chat_goes_on_with_the_models_own_tokens(script: Script, post: Post) -> None:
    engine, url = script(["Hi there", "Fine"])
    url += "/v1/contexts"
    context = post(url, messages=HELLO, prefill=False)["id"]
    first = post(f"{url}/{context}/generate")
    assert first["message"] == {"role": "assistant", "content": "Hi there", "refusal": None}
    assert first["context"] == context
    post(f"{url}/{context}/generate", messages=[{"role": "user", "content": "How are you?"}])
    before, after = engine.prompts
    assert after.startswith(f"{before}Hi there<|im_end|>\n<|im_start|>user\nHow are you?")
    assert any(isinstance(part, Generated) for part in engine.calls[1].prompt)


def test_forks_go_their_own_ways_and_are_joined(script: Script, post: Post) -> None:
    engine, url = script({"cats": "purr", "dogs": "bark", "All": "done"})
    url += "/v1/contexts"
    trunk = post(url, text="Tips:", prefill=False)["id"]
    extend = [{"text": " cats "}, {"text": " dogs "}]
    forks = [f["id"] for f in post(f"{url}/{trunk}/fork", extend=extend)["data"]]
    for fork in forks:
        post(f"{url}/{fork}/generate", sampling_params={"max_new_tokens": 4})
    post(f"{url}/{trunk}/join", contexts=forks)
    post(f"{url}/{trunk}/generate", text=" All: ")
    assert engine.prompts == ["Tips: cats ", "Tips: dogs ", "Tips: cats purr dogs bark All: "]


def test_branches_are_joined_side_by_side(script: Script, post: Post, client: httpx.Client) -> None:
    engine, url = script("x")
    url += "/v1/contexts"
    trunk = post(url, text="A", prefill=False)["id"]
    forks = post(f"{url}/{trunk}/fork", gap=4, extend=[{"text": "B"}, {"text": "C"}])["data"]
    ids = [fork["id"] for fork in forks]
    post(f"{url}/{trunk}/join", contexts=ids, mode="parallel")
    post(f"{url}/{trunk}/generate", text="D")
    branches = ((Shift(4), Text("B")), (Shift(4), Text("C")))
    assert engine.calls[0].prompt == (Text("A"), Parallel(branches), Text("D"))
    shown = client.get(f"{url}/{trunk}").json()["parts"]
    expected: list[Any] = ["A", {"parallel": [[{"shift": 4}, "B"], [{"shift": 4}, "C"]]}, "D"]
    assert shown[:3] == expected


def test_a_fork_a_question_and_its_answer_are_one_round_trip(script: Script, post: Post) -> None:
    engine, url = script(["yes", "no"], logprobs={"red": -1, "blue": -0.1})
    url += "/v1/contexts"
    trunk = post(url, text="The sky.", prefill=False)["id"]
    fork = post(f"{url}/{trunk}/generate", text=" Is it?", fork=True)["context"]
    chosen = post(f"{url}/{trunk}/select", text=" Colour:", choices=["red", "blue"], fork=True)
    assert chosen["choice"] == "blue"
    assert chosen["probabilities"][1] > 0.7
    assert len({trunk, fork, chosen["context"]}) == 3
    post(f"{url}/{chosen['context']}/generate", text=".")
    assert engine.prompts == ["The sky. Is it?", "The sky. Colour:blue."]


def test_a_stream_tells_all_samples_and_then_the_context(
    script: Script, client: httpx.Client
) -> None:
    _, url = script("some words")
    url += "/v1/contexts/new/generate"
    *pieces, last = events(client.post(url, json={"text": "x", "stream": True}))
    assert pieces[-1]["text"] == "some words"
    assert last["context"].startswith("ctx_")
    several = {"text": "x", "stream": True, "sampling_params": {"n": 2}}
    *pieces, last = events(client.post(url, json=several))
    assert {piece["index"] for piece in pieces} == {0, 1}
    assert last == {"context": None}


def test_only_what_a_fork_adds_is_computed(toy_engine: Engine, serve: Any, post: Post) -> None:
    toy_engine.flush_cache()
    url = serve(toy_engine) + "/v1/contexts"
    made = post(url, text="A long text that all branches have in common. " * 6)
    assert made["tokens"] >= 270
    before = toy_engine.get_server_info()["stats"]["computed_tokens"]
    for i in range(4):
        body = {"text": f"{i}?", "fork": True, "sampling_params": {"max_new_tokens": 1}}
        post(f"{url}/{made['id']}/generate", **body)
    computed = toy_engine.get_server_info()["stats"]["computed_tokens"] - before
    assert computed <= 4 * 4


def test_contexts_belong_to_their_key(script: Script, client: httpx.Client) -> None:
    _, url = script("x", api_keys=["a", "b"])
    url += "/v1/contexts"
    own, other = ({"authorization": f"Bearer {key}"} for key in "ab")
    made = client.post(url, json={"text": "x", "prefill": False}, headers=own).json()["id"]
    for headers, status, count in ((own, 200, 1), (other, 404, 0)):
        assert client.get(f"{url}/{made}", headers=headers).status_code == status
        assert len(client.get(url, headers=headers).json()["data"]) == count
        body: dict[str, Any] = {}
        answer = client.post(f"{url}/{made}/generate", json=body, headers=headers)
        assert answer.status_code == status
    assert client.delete(f"{url}/{made}", headers=own).json()["deleted"]
    assert client.get(f"{url}/{made}", headers=own).status_code == 404


def test_a_context_deleted_meanwhile_stays_deleted(script: Script, client: httpx.Client) -> None:
    engine, url = script("x", manual=True)
    url += "/v1/contexts"
    made = client.post(url, json={"text": "x", "prefill": False}).json()["id"]
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.post, f"{url}/{made}/generate", json={})
        eventually(lambda: len(engine.calls) == 1, "the request is under way")
        assert client.delete(f"{url}/{made}").json()["deleted"]
        engine.run_all()
        assert answer.result(PATIENCE).status_code == 404
    assert client.get(f"{url}/{made}").status_code == 404


def test_contexts_expire_unless_they_are_pinned(
    script: Script, post: Post, client: httpx.Client
) -> None:
    _, url = script("x")
    url += "/v1/contexts"
    short, pinned = (
        post(url, text="x", lifetime=0.05, pinned=p, prefill=False)["id"] for p in (False, True)
    )
    time.sleep(0.1)  # the lifetime, and not a wait for something: a look would begin it anew
    assert client.get(f"{url}/{short}").status_code == 404
    assert client.get(f"{url}/{pinned}").json()["expires_in"] is None
    post(f"{url}/{pinned}", pinned=False)
    time.sleep(0.1)
    assert client.get(f"{url}/{pinned}").status_code == 404


def test_a_pinned_prefix_is_computed_again_when_it_was_evicted(
    toy_engine: Engine, serve: Any, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins.Pins.__init__, "__defaults__", (0.05,))
    url = serve(toy_engine)
    context = post(f"{url}/v1/contexts", text="A text that is kept at hand. " * 6, pinned=True)
    toy_engine.flush_cache()
    cached = lambda: toy_engine.get_server_info()["stats"]["cached_slots"]  # noqa: E731
    eventually(lambda: cached() >= context["tokens"] - 1, "the prefix is computed again")
    post(f"{url}/v1/contexts/{context['id']}", pinned=False)


def test_a_context_changed_by_two_requests_at_once_is_a_conflict(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script("x", manual=True)
    url += "/v1/contexts"
    made = client.post(url, json={"text": "x", "prefill": False}).json()["id"]
    body = {"text": "y", "stream": True}
    with client.stream("POST", f"{url}/{made}/generate", json=body) as answer:
        assert client.post(f"{url}/{made}/extend", json={"text": "z"}).status_code == 200
        engine.run_all()
        assert "was changed meanwhile" in "".join(answer.iter_text())
    assert client.get(f"{url}/{made}").json()["parts"] == ["x", "z"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("", {"parts": [5]}, "parts[0] must be a text or an object"),
        ("", {"parts": [{"image_url": "file:///etc/passwd"}]}, "data: URL"),
        ("", {"parts": [{"generated": "x", "token_ids": ["y"]}]}, "parts[0].token_ids"),
        ("", {"parts": [{"shift": -1}]}, "parts[0]"),
        ("", {"messages": [{"role": 5}]}, "messages[0].role"),
        ("", {"text": "x", "lifetime": -1}, "lifetime"),
        ("", {"text": "x", "model": "other"}, "not served"),
        ("/ctx_none/generate", {}, "no context"),
        ("/TEXT/generate", {"messages": HELLO}, "is a text"),
        ("/TEXT/generate", {"sampling_params": {"temprature": 1}}, "temprature"),
        ("/CHAT/extend", {"text": "x"}, "is a chat"),
        ("/CHAT/fork", {"gap": 2}, "gap"),
        ("/TEXT/fork", {"n": 0}, "n of at least 1"),
        ("/TEXT/join", {"contexts": []}, "contexts"),
        ("/TEXT/join", {"contexts": ["CHAT"]}, "same kind"),
        ("/TEXT/join", {"contexts": ["TEXT"], "mode": "odd"}, "mode"),
        ("/CHAT/join", {"contexts": ["CHAT"], "mode": "parallel"}, "parallel"),
        ("/TEXT/select", {"choices": []}, "choices"),
        ("/TEXT/select", {"choices": ["a"], "choices_method": "odd"}, "choices_method"),
    ],
)
def test_what_is_wrong_is_told(
    script: Script, client: httpx.Client, path: str, body: dict[str, Any], said: str
) -> None:
    _, url = script("x")
    url += "/v1/contexts"
    ids = {
        "TEXT": client.post(url, json={"text": "x", "prefill": False}).json()["id"],
        "CHAT": client.post(url, json={"messages": HELLO, "prefill": False}).json()["id"],
    }
    for name, id in ids.items():
        path = path.replace(name, id)
    if "contexts" in body:
        body = {**body, "contexts": [ids.get(c, c) for c in body["contexts"]]}
    answer = client.post(f"{url}{path}", json=body)
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]
