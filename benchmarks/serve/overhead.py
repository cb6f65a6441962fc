"""Cost of the server: the same requests over HTTP and in process, on one engine, in turn."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.benchmarks.serve.load import Load, Order, Post, opened_load
from sgl_mlx.benchmarks.serve.served import HOST, Busy, Served, TimedSelector, served
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.runtime.engine import Engine

PROMPT = 100
"""Words of a prompt; each is a token."""
_LEAST = 8
_ROUNDS = 2


@dataclass(frozen=True)
class Run:
    """All requests of a run.

    Attributes:
        seconds: time from the first request to the end of the last answer.
        first: median seconds from a request to its first event.
        cpu: processor seconds of the process of engine and server.
        loop: processor seconds of the event loop's thread.
    """

    seconds: float
    first: float
    cpu: float
    loop: float = 0.0


@dataclass
class Compared:
    """Runs with `at_once` requests at a time, in pairs: over HTTP and in process."""

    at_once: int
    tokens: int
    http: list[Run] = field(default_factory=list)
    inside: list[Run] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return medians over the pairs. A ratio is HTTP's value divided by the engine's."""
        return {
            "at_once": self.at_once,
            "tokens_per_second": round(self._median(lambda h, _: self.tokens / h.seconds), 1),
            "speed_ratio": round(self._median(lambda h, i: i.seconds / h.seconds), 4),
            "cpu_ratio": round(self._median(lambda h, i: h.cpu / i.cpu), 4),
            "ttft_ms_more": round(1000 * self._median(lambda h, i: h.first - i.first), 2),
            "loop_share": round(self._median(lambda h, _: h.loop / h.cpu), 4),
            "loop_us_per_token": round(1e6 * self._median(lambda h, _: h.loop / self.tokens), 1),
            "pairs": len(self.http),
        }

    def _median(self, figure: Callable[[Run, Run], float]) -> float:
        return statistics.median(map(figure, self.http, self.inside))


@dataclass(frozen=True)
class Overhead:
    """The measurement of one engine's server.

    Args:
        engine: an engine with a chat template.
        app: the ASGI application that serves the engine.
        tokens: tokens of each answer.
        repeats: number of pairs of runs.
        watch: called with a run's name, the number of runs done, and the number of all runs.
    """

    engine: Engine
    app: Any
    tokens: int
    repeats: int
    watch: Callable[[str, int, int], None] = lambda name, done, total: None

    def compare(self, counts: Sequence[int]) -> Iterator[Compared]:
        """Yield the comparison for each number of requests at once.

        Raises:
            BenchmarkError: a request failed.
        """
        with served(self.app) as server, opened_load() as load:
            for at_once in counts:
                texts = self._texts(at_once, self._words)
                warm = texts[: max(at_once, 2)]
                self._over_http(load, server, at_once, warm)
                self._in_process(at_once, warm)
                yield self._compared(load, server, at_once, texts)

    def longest_stretch(self, at_once: int, tokens: int) -> Busy:
        """Return the longest work of the event loop while long prompts arrive beside streams.

        Args:
            at_once: number of streams.
            tokens: length of the two long prompts: one is text, one is token ids. They are given
                up when the streams have ended.
        """
        selector, words = TimedSelector(), self._words
        long = words.text(tokens, "long")
        ids = self.engine.tokenizer.encode(long)
        aside = [
            self._chat(long),
            Post("/v1/completions", json.dumps({"prompt": ids, "max_tokens": 1, "stream": True})),
        ]
        posts = [self._chat(text) for text in self._texts(at_once, words)]
        with served(self.app, selector) as server, opened_load() as load:
            load.send(Order(HOST, server.port, at_once, posts[:at_once]))
            selector.busy = Busy()
            self.watch("long prompts beside streams", 0, 1)
            load.send(Order(HOST, server.port, at_once, posts, aside))
        return selector.busy

    @property
    def _words(self) -> Words:
        return Words(self.engine.tokenizer)

    def _texts(self, at_once: int, words: Words) -> list[str]:
        count = max(_ROUNDS * at_once, _LEAST)
        return [words.text(PROMPT, f"{at_once} {i}") for i in range(count)]

    def _compared(self, load: Load, server: Served, at_once: int, texts: list[str]) -> Compared:
        found = Compared(at_once, len(texts) * self.tokens)
        for i in range(self.repeats):
            self.watch(f"{at_once} at once", i, self.repeats)
            for over_http in (i % 2 == 0, i % 2 != 0):
                if over_http:
                    found.http.append(self._over_http(load, server, at_once, texts))
                else:
                    found.inside.append(self._in_process(at_once, texts))
        return found

    def _over_http(self, load: Load, server: Served, at_once: int, texts: Sequence[str]) -> Run:
        self.engine.flush_cache()
        order = Order(HOST, server.port, at_once, [self._chat(text) for text in texts])
        cpu, loop = time.process_time(), server.cpu()
        seen = load.send(order)
        cpu, loop = time.process_time() - cpu, server.cpu() - loop
        return Run(seen.seconds, statistics.median(seen.first), cpu, loop)

    def _chat(self, text: str) -> Post:
        body = {
            "messages": _messages(text),
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        return Post("/v1/chat/completions", json.dumps(body))

    def _in_process(self, at_once: int, texts: Sequence[str]) -> Run:
        self.engine.flush_cache()
        began, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(at_once) as callers:
            first = list(callers.map(self._generate, texts))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Run(seconds, statistics.median(first), cpu)

    def _generate(self, text: str) -> float:
        """Generate an answer; return the seconds to its first event."""
        first: list[float] = []
        began = time.perf_counter()
        params = SamplingParams(max_new_tokens=self.tokens, temperature=0, ignore_eos=True)
        prompt = self.engine.tokenizer.render_chat(_messages(text), add_generation_prompt=True)

        def told(_: object) -> None:
            if not first:
                first.append(time.perf_counter() - began)

        self.engine.submit((Text(prompt),), params, told).result()
        return first[0]


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
