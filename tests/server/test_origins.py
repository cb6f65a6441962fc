"""Web pages of other origins reach the server only if it allows their origin."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sgl_mlx.cli import main
from sgl_mlx.server import app
from tests.server.scripted import ScriptedEngine

PAGE = "http://localhost:8080"
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def client(**options: Any) -> TestClient:
    return TestClient(app(ScriptedEngine(lambda *_: "hello"), **options))


def preflight(served: TestClient, page: str) -> httpx.Response:
    headers = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    return served.options("/v1/chat/completions", headers=headers)


def allowed(answer: httpx.Response) -> str | None:
    found: str | None = answer.headers.get("access-control-allow-origin")
    return found


@pytest.mark.parametrize("origins", [(), ("http://localhost:9",)])
def test_pages_of_other_origins_get_no_answer(origins: tuple[str, ...]) -> None:
    served = client(origins=origins)
    asked = preflight(served, PAGE)
    assert asked.status_code >= 400
    assert allowed(asked) is None
    answer = served.post("/v1/chat/completions", json=BODY, headers={"origin": PAGE})
    assert allowed(answer) is None


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_allowed_page_asks_and_gets_answers(origins: tuple[str, ...], stream: bool) -> None:
    served = client(origins=origins, api_keys=["secret"])
    assert preflight(served, PAGE).status_code == 200  # browsers send no key with it
    headers = {"origin": PAGE, "authorization": "Bearer secret"}
    answer = served.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers)
    assert answer.status_code == 200
    assert allowed(answer) == origins[0]
    assert "x-sgl-cache" in answer.headers["access-control-expose-headers"]


def test_an_allowed_page_can_read_errors() -> None:
    answer = client(origins=[PAGE], api_keys=["secret"]).post(
        "/v1/chat/completions", json=BODY, headers={"origin": PAGE}
    )
    assert answer.status_code == 401
    assert allowed(answer) == PAGE


@given(st.text(min_size=1, max_size=12), st.sampled_from(["", "/", "/a", "?q", "#x"]))
def test_what_is_no_origin_is_refused_before_a_model_is_loaded(host: str, rest: str) -> None:
    page = host if not rest else f"http://localhost{rest}"
    if page in ("*", "null"):
        return
    result = CliRunner().invoke(main, ["serve", "--allow-origin", page, "no-such-model"])
    assert result.exit_code == 2
    assert "an origin is a scheme, a host and perhaps a port" in result.output.replace("\n", " ")
