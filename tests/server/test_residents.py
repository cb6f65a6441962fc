"""Several models in one budget: opened when asked for, closed when idle, never while in use."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.errors import BackendError
from sgl_mlx.server import ServedModel, app_of_models
from sgl_mlx.server.residents import Residents
from tests.server.conftest import ThreadServer
from tests.server.scripted import ScriptedEngine

SIZES = {"a": 3, "b": 4, "c": 2, "a:x": 1, "b:y": 2}


class Shelf:
    """Models whose engines are texts; it records what is open, and that nothing is overbooked."""

    def __init__(self, budget: int, names: Sequence[str] = tuple(SIZES)) -> None:
        self.open: list[str] = []
        self.used: list[str] = []
        self.budget = budget
        self.residents: Residents[str] = Residents(
            [self._model(name) for name in names],
            budget,
            lambda model, _: model.name,
            free=lambda: None,  # a collection of garbage takes a second in a process of many tests
        )

    def _model(self, name: str) -> ServedModel:
        base = name.partition(":")[0] if ":" in name else None
        return ServedModel(
            name,
            SIZES[name],
            lambda: self._opened(name),  # type: ignore[arg-type]
            lambda _: self._closed(name),
            base,
        )

    def _opened(self, name: str) -> str:
        self.open.append(name)
        assert len(set(self.open)) == len(self.open)
        assert sum(SIZES[each] for each in self.open) <= self.budget
        return name

    def _closed(self, name: str) -> None:
        assert name not in self.used
        assert not any(each.startswith(f"{name}:") for each in self.open)
        self.open.remove(name)

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[None]:
        async with self.residents.borrowed(name) as value:
            assert value == name
            assert name in self.open
            self.used.append(name)
            try:
                yield
            finally:
                self.used.remove(name)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.integers(0, 4)), max_size=25),
    budget=st.integers(6, 13),
)
def test_any_order_of_requests_is_served_within_the_budget(
    asked: list[tuple[str, int]], budget: int
) -> None:
    shelf = Shelf(budget)

    async def visit(name: str, turns: int) -> str:
        async with shelf.using(name):
            for _ in range(turns):
                await asyncio.sleep(0)
        return name

    async def visits() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*(visit(*each) for each in asked)), 60)

    assert asyncio.run(visits()) == [name for name, _ in asked]
    assert shelf.used == []


def test_the_least_recently_used_idle_model_is_closed() -> None:
    shelf = Shelf(9)

    async def visits() -> None:
        for name in ("a", "b", "c", "a", "b:y"):
            async with shelf.using(name):
                pass

    asyncio.run(visits())
    assert shelf.open == ["a", "b", "b:y"]  # c was idle longest of those that need not stay


def test_a_request_that_waits_for_room_is_not_overtaken() -> None:
    shelf = Shelf(4, ["a", "b"])
    served: list[str] = []

    async def visit(name: str, hold: asyncio.Event | None = None) -> None:
        async with shelf.using(name):
            if hold:
                await hold.wait()
            served.append(name)

    async def visits() -> None:
        hold = asyncio.Event()
        tasks = [asyncio.create_task(visit("a", hold))]
        while shelf.used != ["a"]:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(visit(name)) for name in ("b", "a", "b")]
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert served == []
        hold.set()
        await asyncio.gather(*tasks)

    asyncio.run(visits())
    assert served == ["a", "b", "a", "b"]


def test_a_model_that_fails_to_open_leaves_the_others_and_can_be_asked_again() -> None:
    fail = [True]

    def opened() -> Any:
        if fail.pop():
            raise BackendError("no such file")
        return "engine"

    models = [ServedModel("a", 1, opened, lambda _: None)]

    async def visits() -> None:
        residents: Residents[str] = Residents(models, 5, lambda model, _: model.name)
        with pytest.raises(BackendError):
            async with residents.borrowed("a"):
                pass
        fail.append(False)
        async with residents.borrowed("a") as value:
            assert value == "a"

    asyncio.run(visits())


def test_a_model_larger_than_the_budget_is_an_error_with_its_size() -> None:
    with pytest.raises(BackendError, match=r"b takes .* GiB .* the budget is"):
        Shelf(3)


@pytest.fixture
def two_models() -> Any:
    """The address of a server of two scripted models, of which one fits at a time."""
    engines: dict[str, ScriptedEngine] = {}

    def model(name: str) -> ServedModel:
        def opened() -> Any:
            engines[name] = ScriptedEngine(f"I am {name}", model_name=name)
            return engines[name]

        return ServedModel(name, 1, opened, lambda engine: engine.shutdown())  # type: ignore[attr-defined]

    server = ThreadServer(app_of_models([model("one"), model("org/two")], 1, api_keys=["k"])[0])
    server.open()
    yield server.url
    server.close()


def test_each_request_is_answered_by_the_model_it_names(two_models: str) -> None:
    chat = {"messages": [{"role": "user", "content": "who?"}]}
    with httpx.Client(headers={"authorization": "Bearer k"}, base_url=two_models) as client:
        draw = random.Random(1)
        for name in draw.choices(["one", "org/two"], k=8):
            for body, more in (
                ({**chat, "model": name}, {}),
                (chat, {"headers": {"x-sgl-model": name}}),
                (chat, {"params": {"model": name}}),
                ({**chat, "model": name, "stream": True}, {}),
            ):
                answer = client.post("/v1/chat/completions", json=body, **more)  # type: ignore[arg-type]
                assert answer.status_code == 200
                assert f"I am {name}"[-4:] in answer.text
            listed = client.get("/v1/models").json()["data"]
            assert [(m["id"], m["loaded"]) for m in listed] == [
                ("one", name == "one"),
                ("org/two", name == "org/two"),
            ]
        assert client.get("/v1/models/org/two").json()["root"] == "org/two"
        assert 'model_name="' in client.get("/metrics").text
        assert client.get("/health").status_code == 200


def test_an_unknown_model_or_key_or_path_is_refused(two_models: str) -> None:
    with httpx.Client(base_url=two_models) as client:
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 401
        client.headers["authorization"] = "Bearer k"
        wrong = client.post("/v1/completions", json={"prompt": "x", "model": "three"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
        assert client.get("/nowhere").status_code == 404
        assert client.post("/v1/completions", content=b"{").status_code == 400
        assert client.get("/server_info", params={"model": "org/two"}).status_code == 200


def test_an_adapter_that_fails_to_open_does_not_keep_its_base() -> None:
    shelf = Shelf(6)
    opened = shelf._opened

    def failing(name: str) -> str:
        if name == "a:x":
            raise BackendError("the adapter cannot be read")
        return opened(name)

    shelf._opened = failing  # type: ignore[method-assign]

    async def visits() -> None:
        for _ in range(2):
            with pytest.raises(BackendError, match="cannot be read"):
                async with shelf.using("a:x"):
                    raise AssertionError("it opened")
        async with shelf.using("b"):  # there is room only when its base is closed
            assert shelf.open == ["b"]

    asyncio.run(asyncio.wait_for(visits(), 20))
