"""Prompts submitted to the engine from the event loop: their answers, limits and aborts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast
from weakref import WeakKeyDictionary

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, StreamEvent
from sgl_mlx.errors import RequestAborted
from sgl_mlx.limits import Limits
from sgl_mlx.server.engine import ServedEngine
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.metrics import Metrics

Completions = tuple[Completion, ...]


@dataclass(frozen=True)
class Ask:
    """One prompt for the engine, as parts or token ids, with its sampling parameters and id.

    Attributes:
        extra_key: name of the part of the prefix cache to use; see `Visit`.
        choices: texts to score after the prompt, for `Flights.scores`.
        unconditional: also score the choices without the prompt.
    """

    prompt: Prompt | Sequence[int]
    params: SamplingParams
    rid: str
    priority: int = 0
    extra_key: str = ""
    choices: tuple[str, ...] = ()
    unconditional: bool = False

    def begin(
        self,
        engine: ServedEngine,
        on_event: Callable[[StreamEvent], None] | None,
        timeout: float | None,
    ) -> Future[Any]:
        """Submit the prompt; return the engine's future.

        The result is a `ChoiceScores` if there are `choices`, else a tuple of completions. Scores
        have no events and ignore `params` and `rid`.
        """
        options: dict[str, Any] = {"priority": self.priority, "timeout": timeout}
        options["extra_key"] = self.extra_key
        if self.choices:
            prompt = cast(Prompt, self.prompt)
            return engine.score(prompt, self.choices, self.unconditional, **options)
        return engine.submit(self.prompt, self.params, on_event, rid=self.rid, **options)


@dataclass(eq=False)
class Flight:
    """The prompts that one HTTP request submitted to the engine together.

    Attributes:
        asks: the prompts.
        futures: the engine's future for each prompt, in the same order.
        events: pairs of prompt index and stream event; None each time that a prompt has ended.
        aborted: True once a client aborted one of the prompts by its id.
        started: time of the submission on the monotonic clock.
    """

    asks: Sequence[Ask]
    futures: list[Future[Any]] = field(default_factory=list)
    events: asyncio.Queue[tuple[int, StreamEvent] | None] = field(default_factory=asyncio.Queue)
    aborted: bool = False
    started: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


class Flights:
    """All prompts in progress: submits new prompts up to the limits, and aborts prompts by id.

    Args:
        engine: runs the prompts.
        limits: bounds on the number of prompts and on their time.
        metrics: metrics to update for every prompt.
    """

    def __init__(self, engine: ServedEngine, limits: Limits, metrics: Metrics) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._under_way: dict[str, Flight] = {}
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    @property
    def count(self) -> int:
        return len(self._under_way)

    def under_way(self) -> list[tuple[str, float]]:
        """Return a pair for each prompt in progress: its id, and `Flight.started`."""
        return [(rid, flight.started) for rid, flight in self._under_way.items()]

    def abort(self, prefix: str) -> int:
        """Abort the prompts whose id begins with `prefix`; return how many there were."""
        found = [(rid, f) for rid, f in self._under_way.items() if rid.startswith(prefix)]
        for rid, flight in found:
            flight.aborted = True
            for ask, future in zip(flight.asks, flight.futures, strict=False):  # none yet in _begin
                if ask.rid == rid:
                    future.cancel()
        return len(found)

    async def whole(self, asks: Sequence[Ask]) -> list[Completions]:
        """Run the prompts, and return for each prompt the completions of its samples.

        Raises:
            LimitError: too many prompts or samples, in `asks` or together with those in progress.
            HttpError: 499 if a prompt was aborted by its id; 408 if a prompt exceeded the request
                timeout.
            SglError: an error of the engine.
        """
        flight = await self._begin(asks, streamed=False)
        try:
            waiting = map(asyncio.wrap_future, flight.futures)
            answers = list(await asyncio.gather(*waiting))
        except BaseException as error:
            self._raise_explained(flight, error)
        finally:
            self._end(flight)
        for answer in answers:
            self._count(flight, answer)
        return answers

    async def scores(self, asks: Sequence[Ask]) -> list[ChoiceScores]:
        """Score the choices of each prompt; raises the errors of `whole`."""
        return cast(list[ChoiceScores], await self.whole(asks))

    async def stream(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, StreamEvent]]:
        """Run the prompts; yield pairs (index in `asks`, event); raises the errors of `whole`."""
        flight = await self._begin(asks, streamed=True)
        told = [0.0] * len(asks)
        unfinished = len(asks)
        try:
            while unfinished:
                item = await flight.events.get()
                if item is None:
                    unfinished -= 1
                    self._raise_failure(flight)
                    continue
                self._time(flight, told, item[0])
                yield item
            for future in flight.futures:
                self._count(flight, future.result())
        finally:
            self._end(flight)

    async def _begin(self, asks: Sequence[Ask], streamed: bool) -> Flight:
        """Submit the prompts of a request.

        Each iteration of the event loop submits one request at most. So when many requests arrive
        at once, the tokens of running streams are sent in between.
        """
        self._admit(asks)
        flight = Flight(asks)
        for ask in asks:
            self._under_way.setdefault(ask.rid, flight)
        try:
            async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                await asyncio.sleep(0)
                if flight.aborted:
                    self._raise_explained(flight, CancelledError())
                self._submit(flight, streamed)
        except BaseException:
            self._end(flight)
            raise
        self._metrics.requests.inc(len(asks))
        return flight

    def _submit(self, flight: Flight, streamed: bool) -> None:
        loop = asyncio.get_running_loop()

        def put(item: tuple[int, StreamEvent] | None) -> None:
            with suppress(RuntimeError):  # the event loop was closed
                loop.call_soon_threadsafe(flight.events.put_nowait, item)

        def teller(index: int) -> Callable[[StreamEvent], None]:
            return lambda event: put((index, event))

        for i, ask in enumerate(flight.asks):
            on_event = teller(i) if streamed else None
            future = ask.begin(self._engine, on_event, self._limits.request_timeout)
            flight.futures.append(future)
            future.add_done_callback(lambda _: put(None))

    def _admit(self, asks: Sequence[Ask]) -> None:
        limits, count = self._limits, len(asks)
        limits.check("max_prompts", count, f"the request has {count:,} prompts")
        samples = sum(ask.params.n for ask in asks)
        limits.check("max_samples", samples, f"the request asks for {samples:,} samples")
        if self._under_way:
            under_way = f"{self.count:,} prompts are under way"
            limits.check("max_requests", self.count + count, under_way)

    def _end(self, flight: Flight) -> None:
        if not all(future.done() for future in flight.futures):
            self._metrics.aborted.inc()
        flight.cancel()
        for ask in flight.asks:
            if self._under_way.get(ask.rid) is flight:
                del self._under_way[ask.rid]

    def _raise_failure(self, flight: Flight) -> None:
        for future in flight.futures:
            if future.done():
                try:
                    future.result()
                except (Exception, CancelledError) as error:
                    self._raise_explained(flight, error)

    def _raise_explained(self, flight: Flight, error: BaseException) -> NoReturn:
        """Raise `error`, but a 499 after an abort by id, and a 408 after a timeout."""
        if isinstance(error, (CancelledError, asyncio.CancelledError)) and flight.aborted:
            message = "the request was aborted by its id"
            raise HttpError(499, message, "request_aborted") from error
        timeout = self._limits.request_timeout or math.inf
        late = time.monotonic() - flight.started >= timeout
        if isinstance(error, RequestAborted) and late:
            message = f"the request took over {timeout:g} seconds"
            raise HttpError(408, message, "timeout") from error
        raise error

    def _time(self, flight: Flight, told: list[float], index: int) -> None:
        now = time.monotonic()
        if told[index]:
            self._metrics.between_tokens.observe(now - told[index])
        else:
            self._metrics.first_token.observe(now - flight.started)
        told[index] = now

    def _count(self, flight: Flight, answer: Completions | ChoiceScores) -> None:
        metrics = self._metrics
        samples = answer if isinstance(answer, tuple) else ()
        prompt = answer if isinstance(answer, ChoiceScores) else answer[0]
        metrics.prompt_tokens.inc(prompt.prompt_tokens)
        metrics.cached_tokens.inc(prompt.cached_tokens)
        metrics.generated.inc(sum(len(sample.token_ids) for sample in samples))
        metrics.whole.observe(time.monotonic() - flight.started)
