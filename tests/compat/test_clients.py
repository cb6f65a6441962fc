"""Clients of other services, on objects that answer as their packages do."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.compat.clients import Anthropic, LiteLLM, VertexAI
from sgl_mlx.errors import BackendError


@sgl.function
def chat(s: Any) -> None:
    s += sgl.system("Be brief") + sgl.user("hi") + sgl.assistant(sgl.gen("a", max_tokens=9))


class Service:
    """Answers as each of the three packages does, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.messages = self

    def create(self, **request: Any) -> Any:
        self.requests.append(request)
        usage = SimpleNamespace(input_tokens=3, output_tokens=1)
        return SimpleNamespace(content=[SimpleNamespace(text="out")], usage=usage)

    def completion(self, **request: Any) -> Any:
        self.requests.append(request)
        part = SimpleNamespace(content="out")
        choice = SimpleNamespace(message=part, delta=part)
        usage = SimpleNamespace(prompt_tokens=3, completion_tokens=1)
        answer = SimpleNamespace(choices=[choice], usage=usage)
        return iter([answer]) if request.get("stream") else answer

    def generate_content(self, contents: Any, **request: Any) -> Any:
        self.requests.append({"contents": contents, **request})
        answer = SimpleNamespace(text="out")
        return iter([answer]) if request.get("stream") else answer


@pytest.mark.parametrize("kind", [Anthropic, LiteLLM, VertexAI])
def test_clients_send_turns(kind: Any) -> None:
    service = Service()
    state = chat.run(backend=kind("some-model", client=service))
    assert state["a"] == "out"
    (request,) = service.requests
    turns = request.get("messages") or request["contents"]
    assert [turn["role"] for turn in turns][-1] == "user"
    assert "Be brief" in str(request)
    limits = {**request, **request.get("generation_config", {})}
    assert 9 in (limits.get("max_tokens"), limits.get("max_output_tokens"))
    if kind is not VertexAI:
        assert state.get_meta_info("a")["completion_tokens"] == 1
    if kind is not Anthropic:
        streamed = chat.run(backend=kind("some-model", client=service), stream=True)
        assert "".join(streamed.text_iter("a")) == "out"


@given(
    st.sampled_from([None, 0.0, 0.5]),
    st.sampled_from([None, 5]),
    st.sampled_from([None, 0.9]),
    st.sets(st.sampled_from(["temperature", "top_k", "top_p"])),
)
def test_what_a_newer_package_does_not_name_goes_into_the_body(
    temperature: float | None, top_k: int | None, top_p: float | None, unnamed: set[str]
) -> None:
    """Values that were not given are not sent at all: services refuse some of them together."""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given_ = {name: value for name, value in sampling.items() if value is not None}
    service = Service()
    service.create = _strict(service.create, unnamed)  # type: ignore[method-assign]
    assert chat.run(backend=Anthropic("some-model", client=service), **given_)["a"] == "out"
    (request,) = service.requests
    body = request.pop("extra_body", {})
    assert {k: v for k, v in {**request, **body}.items() if k in sampling} == given_
    assert set(body) == unnamed & given_.keys()


def _strict(create: Any, unnamed: set[str]) -> Any:
    """A method that names the parameters of a request, some left out, and takes no others."""
    names = {"model", "messages", "max_tokens", "system", "stop_sequences", "extra_body"}
    names |= {"temperature", "top_k", "top_p"} - unnamed
    listed = ", ".join(f"{name}=None" for name in sorted(names))
    given = "{k: v for k, v in locals().items() if v is not None}"
    made: dict[str, Any] = {"create": create}
    exec(f"def strict(*, {listed}):\n    return create(**{given})", made)
    return made["strict"]


def test_a_package_that_cannot_be_imported_tells_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "anthropic.py").write_text("import no_such_package_of_anthropic")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "anthropic", raising=False)
    with pytest.raises(BackendError, match="no_such_package_of_anthropic"):
        Anthropic("some-model")


@pytest.mark.parametrize("kind", [Anthropic, LiteLLM, VertexAI])
def test_a_missing_package_is_named(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anthropic", "litellm", "vertexai"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match="pip install"):
        kind("some-model")
