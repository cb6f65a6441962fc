"""The examples in docs/asyncio.md run as they stand, and its handler serves and is cancelled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE

PAGE = Path(__file__).parents[2] / "docs" / "asyncio.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SCOPE = {"type": "http", "query_string": b"q=What%20is%20a%20heap%3F"}


@pytest.fixture
def page() -> Iterator[dict[str, Any]]:
    """The names that the page's examples define."""
    sgl.set_default_backend(ScriptedBackend(" a scripted answer"))
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"{PAGE.name}, example {number}", "exec"), namespace)
    yield namespace
    sgl.set_default_backend(None)


class Client:
    """A client of an ASGI application; it leaves when `left` is set."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def test_the_examples_run_one_after_another(
    page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(BLOCKS) == 5
    assert asyncio.run(page["quick"]("x")) == "a scripted answer"
    assert asyncio.run(page["tell"]("x")) == "a scripted answer"
    assert asyncio.run(page["many"](["x", "y"])) == ["a scripted answer"] * 2
    assert capsys.readouterr().out == " a scripted answer"


def test_the_examples_answer_errors_as_the_page_says(page: dict[str, Any]) -> None:
    sgl.set_default_backend(ScriptedBackend([" one", KeyError("boom")]))
    assert asyncio.run(page["many"](["x", "y"])) in (["one", None], [None, "one"])
    sgl.set_default_backend(ScriptedBackend([TimeoutError("late")]))
    assert asyncio.run(page["quick"]("x")) == "Please ask again later."


def test_the_handler_streams_the_answer(page: dict[str, Any]) -> None:
    async def main() -> list[dict[str, Any]]:
        client = Client()
        await asyncio.wait_for(page["app"](SCOPE, client.receive, client.send), PATIENCE)
        return client.sent

    start, *pieces, end = asyncio.run(main())
    assert start["status"] == 200
    assert b"".join(piece["body"] for piece in pieces) == b" a scripted answer"
    assert not end.get("more_body")


def test_the_handler_raises_what_goes_wrong(page: dict[str, Any]) -> None:
    async def main() -> None:
        client = Client()
        await asyncio.wait_for(page["app"](SCOPE, client.receive, client.send), PATIENCE)

    sgl.set_default_backend(ScriptedBackend([ValueError("boom")]))
    with pytest.raises(ValueError, match="boom"):
        asyncio.run(main())


@pytest.mark.parametrize("how", ["client leaves", "server cancels"])
def test_the_handler_cancels_the_program_of_a_client_that_left(
    page: dict[str, Any], how: str
) -> None:
    backend = ScriptedBackend(" never", manual=True)
    sgl.set_default_backend(backend)

    async def main() -> None:
        client = Client()
        handling = asyncio.ensure_future(page["app"](SCOPE, client.receive, client.send))
        while not backend.pending:
            await asyncio.sleep(0.01)
        if how == "client leaves":
            client.left.set()
            await asyncio.wait_for(handling, PATIENCE)
        else:
            handling.cancel()
        while backend.pending:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert backend.calls[0].future.cancelled()
