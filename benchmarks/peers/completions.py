"""Client of a completion server: posts requests, reads streamed answers, counts tokens.

Each kind of server has a `Dialect` that writes its requests and reads its events.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx

from sgl_mlx.benchmarks.peers.lines import Lines
from sgl_mlx.benchmarks.peers.system import Answer, PeerError, Usage
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import WARM_UP_TOKENS, Row, Workload, warm_up

_RETRIES = (0.05, 0.2, 0.5, 1.0)
"""Seconds to wait before each retry of a call whose connection failed before any answer.

A server's queue of connections may be shorter than the number of simultaneous calls."""


@dataclass(frozen=True)
class Question:
    """One call, independent of the kind of server.

    Attributes:
        bias: values to add to logits, by token id.
        stop: strings that end the output.
        grammar: a grammar in GBNF that the output must match; None for free output.
        images: files of the pictures in the prompt, in order.
    """

    prompt: str
    max_tokens: int
    bias: Mapping[int, float]
    stop: Sequence[str] = ()
    grammar: str | None = None
    images: Sequence[str] = ()


class Dialect(Protocol):
    """Format of the requests and events of one kind of server.

    Attributes:
        path: the path that requests are posted to.
    """

    @property
    def path(self) -> str: ...

    @property
    def scored_tokens(self) -> int:
        """Fewest output tokens that a request can ask for.

        Calls that only score a prompt ask for this number; these tokens are not counted.
        """
        ...

    @property
    def drops_first_space(self) -> bool:
        """True if the server strips a leading space from its output."""
        ...

    def request(self, question: Question) -> dict[str, Any]: ...

    def text(self, event: Mapping[str, Any]) -> str:
        """Return the output text in an event; "" if the event has none."""
        ...

    def usage(self, event: Mapping[str, Any]) -> Answer | None:
        """Return the token counts in an event; None if the event has none."""
        ...


@contextmanager
def opened(
    name: str, address: str, dialect: Dialect, workload: Workload, words: Words, timeout: float
) -> Iterator[HttpSession]:
    """Open a session with the running server at `address`, and warm up the server.

    Raises:
        PeerError: when a warm-up call fails.
    """
    session = HttpSession(name, address, dialect, workload, words, timeout)
    try:
        session.warm_up()
        yield session
    finally:
        session.close()


class HttpSession:
    """A `Session` on a server, and the `Client` that the workloads' HTTP versions call.

    Args:
        name: the server's name in error messages.
        timeout: seconds without any data from the server after which a call fails.
    """

    def __init__(
        self,
        name: str,
        address: str,
        dialect: Dialect,
        workload: Workload,
        words: Words,
        timeout: float,
    ) -> None:
        self._name = name
        self._dialect = dialect
        self._workload = workload
        self._words = words
        self.usage = Usage()
        # one connection per request: a request on an idle one that the server has closed would fail
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.Client(base_url=address, timeout=timeout, limits=limits, trust_env=False)

    def run(self, row: Row) -> None:
        self._workload.http(self, **row)

    def details(self) -> Mapping[str, Any]:
        return {}

    def warm_up(self) -> None:
        """Make calls that are not measured, so that the server loads and compiles all it needs."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda text: self.complete(text, WARM_UP_TOKENS), warm_up(self._words)))
        self.usage = Usage()

    def close(self) -> None:
        self._http.close()

    # -- Client -------------------------------------------------------------------------------

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        images: Sequence[str] = (),
    ) -> str:
        bias = self._words.steer(prompt, constrained=grammar is not None)
        text, answer = self._ask(Question(prompt, max_tokens, bias, stop, grammar, images))
        if grammar is not None:
            answer = replace(answer, output_tokens=self._words.count(text))
        elif self._dialect.drops_first_space and not text.startswith(" "):
            text = " " + text  # steered answers begin with a space on all systems
        self.usage.add(answer)
        return text

    def score(self, prompt: str, choices: Sequence[str]) -> None:
        with ThreadPoolExecutor(len(choices)) as pool:
            for answer in pool.map(lambda choice: self._compute(prompt + choice), choices):
                self.usage.add(answer)

    def _compute(self, prompt: str) -> Answer:
        least = self._dialect.scored_tokens
        _, answer = self._ask(Question(prompt, least, {}))
        return Answer(answer.prompt_tokens, 0, answer.cached_tokens)

    # -- one call -----------------------------------------------------------------------------

    def _ask(self, question: Question) -> tuple[str, Answer]:
        for patience in (*_RETRIES, None):
            pieces: list[str] = []
            try:
                return self._stream(question, pieces)
            except httpx.TimeoutException as error:
                waited = self._http.timeout.read
                raise PeerError(f"{self._name} hangs: it sent nothing for {waited} s") from error
            except httpx.HTTPError as error:
                if pieces or patience is None:
                    broke = f"{self._name} broke off: {type(error).__name__}: {error}"
                    raise PeerError(broke) from error
                time.sleep(patience)
        raise AssertionError("the last try returns or raises")

    def _stream(self, question: Question, pieces: list[str]) -> tuple[str, Answer]:
        started, first, answer = time.perf_counter(), None, None
        request = self._dialect.request(question)
        with self._http.stream("POST", self._dialect.path, json=request) as response:
            if response.is_error:
                said = response.read()[:300].decode("utf-8", "replace")
                raise PeerError(
                    f"{self._name} refused a request with status {response.status_code}: {said}"
                )
            for line in _lines(response):
                if (event := self._event(line)) is None:
                    continue
                if text := self._dialect.text(event):
                    first = first or time.perf_counter() - started
                    pieces.append(text)
                answer = self._dialect.usage(event) or answer
        if answer is None:
            raise PeerError(f"{self._name} sent an answer without counts of tokens")
        return "".join(pieces), replace(answer, first=first)

    def _event(self, line: str) -> Mapping[str, Any] | None:
        """Parse one line of server-sent events; returns None for a line without data.

        Raises:
            PeerError: for a line that is no event, data that is no JSON object, or an error event.
        """
        name, _, data = line.partition(":")
        if name != "data" or data.strip() == "[DONE]":
            if name.strip().startswith(("{", "<")):
                raise PeerError(f"{self._name} sent no stream of events but {line[:200]!r}")
            return None
        try:
            event = json.loads(data)
        except ValueError:
            raise PeerError(f"{self._name} sent no JSON but {data[:200]!r}") from None
        if not isinstance(event, dict):
            raise PeerError(f"{self._name} sent no JSON object: {data[:200]!r}")
        if "error" in event:
            raise PeerError(f"{self._name} answers with an error: {event['error']}")
        return event


def _lines(response: httpx.Response) -> Iterator[str]:
    lines = Lines()
    for piece in response.iter_bytes():
        yield from lines.feed(piece)
    yield from lines.rest()
