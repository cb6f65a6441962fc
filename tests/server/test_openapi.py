"""The OpenAPI document is whole, and requests made from it are never the server's fault."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from starlette.routing import Route

from sgl_mlx.server import Limits, app
from sgl_mlx.server.openapi import body_of, openapi
from tests.server.scripted import ScriptedEngine

REQUESTS = 2000
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text"}]}]
BODYLESS = {"/flush_cache"}
"""Paths that are posted to without a body."""

APP = app(
    ScriptedEngine("an answer", context_length=100_000),
    model_names=["org/model"],
    any_model=True,
    limits=Limits(max_stops=10),
)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
POSTS = [r for r in APP.routes if isinstance(r, Route) and (r.methods or set()) & {"POST", "PUT"}]


@SCHEMA.hook
def map_body(_: Any, body: Any) -> Any:
    """Give every second body a chat that is right, as random messages are mostly refused."""
    if isinstance(body, dict) and "messages" in body and len(repr(body)) % 2:
        return {**body, "messages": CHAT}
    return body


@SCHEMA.parametrize()
@settings(
    max_examples=-(-REQUESTS // len(POSTS)),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_a_request_from_the_document_is_answered_or_refused(case: schemathesis.Case) -> None:
    answer = case.call()
    assert answer.status_code < 500, answer.text
    assert "internal error" not in answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]


def test_every_route_is_in_the_document_and_every_body_has_a_shape() -> None:
    document = openapi(APP.routes)
    assert set(document["paths"]) == {
        r.path.replace(":path", "") for r in APP.routes if isinstance(r, Route)
    }
    assert {route.path for route in POSTS if body_of(route) is None} == BODYLESS
    names = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(names) == len(set(names))


def test_references_lead_somewhere_and_the_schemas_are_json_schemas() -> None:
    document = openapi(APP.routes)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    told = repr(document)
    for reference in told.split("#/components/schemas/")[1:]:
        assert reference.split("'")[0] in schemas


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/generate"])
def test_required_fields_are_those_that_a_request_is_refused_without(path: str) -> None:
    document = openapi(APP.routes)
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = document["components"]["schemas"][body["schema"]["$ref"].split("/")[-1]]
    for name in schema.get("required", []):
        assert name in ("messages", "max_tokens", "model")
