"""One request of a soak: sends it, times it, and says what is wrong with the answer."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

_QUOTED = 120
"""Most characters of an answer that an error repeats."""

_WORDS = re.findall(
    r"\w+",
    """
    river stone cloud winter garden engine letter window music bridge forest market silver
    story kitchen doctor island summer paper animal village ocean mirror planet teacher
    answer number morning shadow friend money table history valley castle flower train
    science color street
    """,
)


class WrongAnswer(Exception):
    """An answer that the request must not get; the message says why."""


@dataclass(frozen=True)
class Facts:
    """Facts about the server of a soak.

    Attributes:
        longest: number of words in the longest prompts.
        slots: the most tokens that a prompt may have.
        pictures: True if the model takes pictures.
        keys: the server's API keys.
        told: the first answer to each request that must always get the same answer.
    """

    longest: int
    slots: int
    pictures: bool = False
    keys: tuple[str, ...] = ("none",)
    told: dict[str, str] = field(default_factory=dict)


class Visit:
    """A request in progress, with random draws of its own.

    Attributes:
        first: seconds from the start to the first text; None if there was none.
    """

    def __init__(self, http: httpx.AsyncClient, facts: Facts, draw: random.Random) -> None:
        self.facts = facts
        self.draw = draw
        self.first: float | None = None
        self._http = http
        self._headers = {"authorization": f"Bearer {draw.choice(facts.keys)}"}
        self._started = time.perf_counter()

    def words(self, count: int) -> str:
        """Draw a text of `count` words."""
        return " ".join(self.draw.choice(_WORDS) for _ in range(count))

    async def get(self, path: str) -> httpx.Response:
        """Get a page.

        Raises:
            WrongAnswer: the status is not 200.
        """
        answer = await self._http.get(path, headers=self._headers)
        return expect(answer, 200)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Post a JSON body and return the decoded JSON answer.

        Raises:
            WrongAnswer: the status is not 200.
        """
        return (await self.sent(path, body)).json()

    async def sent(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Post a JSON body and return the answer; raises as `post`."""
        answer = await self._http.post(path, json=body, headers=self._headers)
        return expect(answer, 200)

    async def refused(self, path: str, content: bytes, *statuses: int) -> None:
        """Post a body that must be refused with one of `statuses`.

        Raises:
            WrongAnswer: the answer has another status, or no message in its JSON.
        """
        headers = {**self._headers, "content-type": "application/json"}
        answer = await self._http.post(path, content=content, headers=headers)
        expect(answer, *statuses)
        if not answer.json()["error"]["message"]:
            raise WrongAnswer("a refusal without a message")

    async def stream(
        self, path: str, body: Mapping[str, Any], most: int | None = None
    ) -> list[dict[str, Any]]:
        """Post a body and return the chunks of the streamed answer.

        Args:
            most: number of chunks after which the connection is closed; None reads all.

        Raises:
            WrongAnswer: the status is not 200, or a chunk has an error.
        """
        body = {**body, "stream": True}
        chunks: list[dict[str, Any]] = []
        async with self._http.stream("POST", path, json=body, headers=self._headers) as answer:
            if answer.is_error:
                await answer.aread()
            expect(answer, 200)
            if most == 0:
                return chunks
            async with aclosing(_events(answer)) as events:
                async for chunk in events:
                    if "error" in chunk:
                        raise WrongAnswer(f"the stream ends with an error: {_quoted(chunk)}")
                    self.first = self.first or time.perf_counter() - self._started
                    chunks.append(chunk)
                    if len(chunks) == most:
                        break
        return chunks


async def _events(answer: httpx.Response) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of a stream. httpx's own lines would end at U+2028 inside a text too."""
    rest = b""
    async for data in answer.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data" and value.strip() != b"[DONE]":
                yield json.loads(value)


def expect(answer: httpx.Response, *statuses: int) -> httpx.Response:
    """Return an answer that has one of `statuses`; raise `WrongAnswer` for any other."""
    if answer.status_code not in statuses:
        wanted = " or ".join(map(str, statuses))
        raise WrongAnswer(f"status {answer.status_code} for {wanted}: {_quoted(answer.text)}")
    return answer


def _quoted(value: object) -> str:
    """Return the beginning of a text without ids, so that equal errors are counted together."""
    return re.sub(r"[0-9a-f]{12,}|\d{7,}", "…", str(value))[:_QUOTED]
