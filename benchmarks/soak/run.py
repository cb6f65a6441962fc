"""The run of a soak: clients that send one request after another until the time is over."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx

from sgl_mlx.benchmarks.soak.kinds import Kind, kinds, picture
from sgl_mlx.benchmarks.soak.samples import Sample, Sampler, memory, server_process
from sgl_mlx.benchmarks.soak.visit import Facts, Visit, WrongAnswer
from sgl_mlx.benchmarks.suite.run import percentile

_TIMEOUT = 600.0
"""Seconds of silence after which a request counts as an error."""


@dataclass(frozen=True)
class Outcome:
    """One request that has ended.

    Attributes:
        seconds: seconds to the end of the answer.
        first: seconds to the first text of a streamed answer; None if there was none.
        error: what was wrong; None if nothing was.
    """

    kind: str
    seconds: float
    first: float | None
    error: str | None


@dataclass(frozen=True)
class Plan:
    """The settings of a soak.

    Attributes:
        seconds: how long new requests are sent.
        clients: number of requests at once.
        slots: slots of the server's KV pool.
        longest: words of the longest prompts.
        interval: seconds between samples of memory.
        keys: the server's API keys.
    """

    seconds: float
    clients: int
    slots: int
    longest: int
    interval: float
    keys: tuple[str, ...]
    seed: int = 0


async def soak(address: str, plan: Plan, told: Callable[[Sample], None]) -> dict[str, Any]:
    """Send mixed requests to a server that this process started; return the report.

    Args:
        told: called with each sample of memory.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=plan.clients)
    async with httpx.AsyncClient(
        base_url=address, timeout=_TIMEOUT, limits=limits, trust_env=False
    ) as http:
        facts = Facts(plan.longest, plan.slots, await _sees(http, plan.keys[0]), plan.keys)
        sampler = Sampler(http, plan.keys[0], server_process(), plan.slots)
        sampling = asyncio.create_task(sampler.take_all(plan.interval, told))
        try:
            outcomes = await _clients(http, facts, plan)
        finally:
            sampling.cancel()
        end = await sampler.at_rest()
        flushed = await http.post(
            "/flush_cache", headers={"authorization": f"Bearer {plan.keys[0]}"}
        )
        return {
            **_counts(outcomes),
            "pictures": facts.pictures,
            "memory": memory(sampler.samples),
            "left": {
                "running": end.running,
                "waiting": end.waiting,
                "leaked_slots": end.used_slots,
                "flushed": flushed.is_success,
                "slots_after_flush": (await sampler.take()).used_slots,
                "threads": end.threads,
                "files": end.files,
            },
        }


async def _sees(http: httpx.AsyncClient, key: str) -> bool:
    """Return True if the model takes pictures."""
    parts = [{"type": "image_url", "image_url": {"url": picture(0, 0, 0)}}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {key}"}
    return (await http.post("/v1/chat/completions", json=body, headers=headers)).is_success


async def _clients(http: httpx.AsyncClient, facts: Facts, plan: Plan) -> list[Outcome]:
    outcomes: list[Outcome] = []
    mixed = kinds(facts)
    end = time.monotonic() + plan.seconds

    async def client(number: int) -> None:
        draw = random.Random(f"{plan.seed} {number}")
        while time.monotonic() < end:
            [kind] = draw.choices(mixed, [kind.share for kind in mixed])
            outcomes.append(await send(http, facts, kind, draw))

    await asyncio.gather(*(client(i) for i in range(plan.clients)))
    return outcomes


async def send(http: httpx.AsyncClient, facts: Facts, kind: Kind, draw: random.Random) -> Outcome:
    """Send one request; errors of the server, the network or the answer are in the outcome."""
    visit = Visit(http, facts, draw)
    started, error = time.perf_counter(), None
    try:
        await kind.send(visit)
    except WrongAnswer as wrong:
        error = str(wrong)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as wrong:
        error = f"{type(wrong).__name__}: {wrong}"
    return Outcome(kind.name, time.perf_counter() - started, visit.first, error)


def _counts(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    ordered = sorted(outcomes, key=lambda outcome: outcome.kind)
    rows = {kind: list(found) for kind, found in groupby(ordered, lambda outcome: outcome.kind)}
    wrong = Counter(f"{o.kind}: {o.error}" for o in ordered if o.error is not None)
    return {
        "requests": len(ordered),
        "errors": sum(wrong.values()),
        "errors_by_kind": dict(wrong.most_common()),
        "kinds": {kind: _row(found) for kind, found in rows.items()},
    }


def _row(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    seconds = [outcome.seconds for outcome in outcomes]
    first = [outcome.first for outcome in outcomes if outcome.first is not None]
    return {
        "requests": len(outcomes),
        "errors": sum(outcome.error is not None for outcome in outcomes),
        "p50": percentile(seconds, 50),
        "p99": percentile(seconds, 99),
        "first_p50": percentile(first, 50),
        "first_p99": percentile(first, 99),
    }
