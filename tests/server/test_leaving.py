"""Many clients at once, of which some leave at any time: nothing of theirs is left behind."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server.flight import Flight
from tests.server.conftest import Serve
from tests.server.steps import Steps, recorded_steps

CLIENTS = 64
TOKENS = 60
LEAVING = 0.3
SUBMITTED = 2
"""Steps that the runner may have begun when a request ends: one, and one ahead of it."""


@dataclass(frozen=True)
class Visitor:
    """A client, and the number of events after which it leaves; None to stay to the end."""

    name: str
    prompt: str
    leaves_after: int | None

    async def visit(self, client: httpx.AsyncClient, url: str) -> int:
        """Return the number of events read."""
        body = {
            "prompt": self.prompt,
            "rid": self.name,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        events = 0
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if events == self.leaves_after:
                    break
                events += line.startswith("data: {")
        return events


@pytest.mark.parametrize("seed", range(3))
def test_clients_that_leave_free_all_that_they_had(
    toy_engine: Engine, serve: Serve, seed: int
) -> None:
    draw = random.Random(seed)
    visitors = [
        Visitor(
            f"client-{i:02}",
            "".join(draw.choices("abcdefgh ", k=draw.randint(1, 200))),
            draw.randrange(TOKENS) if draw.random() < LEAVING else None,
        )
        for i in range(CLIENTS)
    ]
    url = serve(toy_engine)
    toy_engine.flush_cache()

    async def visits() -> list[int]:
        async with httpx.AsyncClient(timeout=240, limits=httpx.Limits()) as client:
            return list(await asyncio.gather(*(v.visit(client, url) for v in visitors)))

    with recorded_steps() as steps, pytest.MonkeyPatch.context() as patch:
        ended = _endings(patch, steps)
        events = asyncio.run(visits())
        while running(toy_engine):
            pass
    left = [v for v in visitors if v.leaves_after is not None]
    assert len(left) > 5
    assert all(n >= 1 for v, n in zip(visitors, events, strict=True) if v not in left)
    for visitor in left:
        at = ended[visitor.name]
        late = [step for step in steps.all[at:] if step.has(visitor.name)]
        assert len(late) <= SUBMITTED, visitor
    stats = toy_engine.get_server_info()["stats"]
    assert stats["free_slots"] + stats["cached_slots"] == 4000
    assert toy_engine.flush_cache()
    assert toy_engine.get_server_info()["stats"]["free_slots"] == 4000
    assert httpx.get(f"{url}/get_load").json()[0]["num_reqs"] == 0


def _endings(patch: pytest.MonkeyPatch, steps: Steps) -> dict[str, int]:
    """Note the number of finished steps when the server gives up each request, by its id."""
    ended: dict[str, int] = {}
    cancel = Flight.cancel

    def noting(flight: Flight) -> None:
        ended.update({ask.rid: len(steps.all) for ask in flight.asks})
        cancel(flight)

    patch.setattr(Flight, "cancel", noting)
    return ended


def running(engine: Engine) -> Any:
    stats = engine.get_server_info()["stats"]
    return stats["running"] or stats["waiting"]
