"""`async_generate` leaves its event loop free, however long preparing its request takes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sgl_mlx.errors import PromptError
from sgl_mlx.runtime.engine import Engine

TICK = 0.001
TIMES = 10
"""How much longer than an idle loop's the longest gap may be. Holding the GIL shows as hundreds."""


def schema(fields: int) -> dict[str, Any]:
    """A schema of some 17 lines a field, and a number that makes it a new one each time."""
    properties = {
        f"field_{time.perf_counter_ns()}_{i}": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": i + 1},
                "kind": {"enum": ["a", "b", "c"]},
                "count": {"type": "integer", "minimum": i},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        for i in range(fields)
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


async def longest_gap(work: Callable[[], Awaitable[Any]]) -> float:
    """The longest time between two ticks of the loop while `work` is done."""
    gaps = []
    task = asyncio.ensure_future(work())
    last = time.perf_counter()
    while not task.done():
        await asyncio.sleep(TICK)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    await task
    return max(gaps)


def compared(work: Callable[[], Awaitable[Any]], attempts: int = 5) -> float:
    """The longest gap as a multiple of that of a loop idle as long; the least of a few attempts.

    Work on the loop delays every attempt; other processes of the machine delay some.
    """

    async def measure() -> float:
        began = time.perf_counter()
        busy = await longest_gap(work)
        took = time.perf_counter() - began
        idle = await longest_gap(lambda: asyncio.sleep(max(took, 0.3)))
        return busy / idle

    least = math.inf
    for _ in range(attempts):
        least = min(least, asyncio.run(measure()))
        if least < TIMES:
            break
    return least


def test_a_prompt_of_100k_tokens_does_not_block_the_loop(smollm2: Engine) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 10_500

    async def ask() -> None:
        with pytest.raises(PromptError, match=r"has 1\d{5} tokens"):
            await smollm2.async_generate(text, max_new_tokens=1)

    assert compared(ask) < TIMES


def test_a_schema_of_2000_lines_does_not_block_the_loop(smollm2: Engine) -> None:
    async def ask() -> None:
        given = schema(120)
        assert len(json.dumps(given, indent=1).splitlines()) > 2000
        await smollm2.async_generate("A:", json_schema=given, max_new_tokens=1)

    assert compared(ask) < TIMES


def test_healing_tables_do_not_block_the_loop(smollm2: Engine) -> None:
    async def ask() -> None:
        await smollm2.async_generate("http:", token_healing=True, max_new_tokens=1)

    assert compared(ask, attempts=1) < TIMES


def test_cancelling_an_asynchronous_call_ends_its_request(toy: Engine) -> None:
    async def ask() -> None:
        call = toy.async_generate("ab", max_new_tokens=400, ignore_eos=True, rid="gone")
        await asyncio.wait_for(call, 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert not toy.abort("gone")
