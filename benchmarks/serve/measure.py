"""One run: all conversations of a trace on one server, a fixed number at a time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.serve.client import ChatClient, Message, Reply
from sgl_mlx.benchmarks.serve.trace import Conversation
from sgl_mlx.benchmarks.suite.run import percentile
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import WARM_UP_TOKENS

Progress = Callable[[int], None]
"""Function that is called with the number of turns answered so far."""

_WARM_UP = 8


@dataclass(frozen=True)
class Run:
    """One server's answers to a trace, and their time.

    Attributes:
        server: the server's name.
        seconds: time from the first request to the last answer.
        replies: all answers.
    """

    server: str
    seconds: float
    replies: tuple[Reply, ...]

    @property
    def output_tokens(self) -> int:
        return sum(reply.output_tokens for reply in self.replies)

    @property
    def prompt_tokens(self) -> int:
        return sum(reply.prompt_tokens for reply in self.replies)

    @property
    def speed(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.seconds

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that the server says it had cached."""
        return sum(reply.cached_tokens for reply in self.replies) / max(self.prompt_tokens, 1)

    @property
    def first(self) -> tuple[float, ...]:
        """Seconds to the first text of each answer."""
        return tuple(reply.first for reply in self.replies)

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between consecutive pieces of text, of all answers."""
        return tuple(gap for reply in self.replies for gap in reply.gaps)

    def to_dict(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "seconds": round(self.seconds, 3),
            "requests": len(self.replies),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "tokens_per_second": round(self.speed, 2),
            "hit_rate": round(self.hit_rate, 4),
            "ttft_mean": round(statistics.fmean(self.first), 4),
            "ttft_p50": percentile(self.first, 50),
            "ttft_p99": percentile(self.first, 99),
            "inter_token_p50": percentile(self.gaps, 50),
            "inter_token_p99": percentile(self.gaps, 99),
        }


async def run_trace(
    client: ChatClient,
    server: str,
    conversations: Sequence[Conversation],
    at_once: int,
    words: Words | None,
    progress: Progress,
) -> Run:
    """Hold all conversations, `at_once` of them at a time, after a few requests that do not count.

    Args:
        words: makes the model write a text that depends on the prompt alone, so that all servers
            get the same conversations; None lets it write what it likes.

    Raises:
        PeerError: a request failed; all other requests are cancelled.
    """
    await asyncio.gather(*(client.ask(_warm_up(i), WARM_UP_TOKENS, {}) for i in range(_WARM_UP)))
    replies: list[Reply] = []
    waiting = iter(conversations)
    started = time.perf_counter()

    async def visitor() -> None:
        for conversation in waiting:
            async for reply in _held(client, conversation, words):
                replies.append(reply)
                progress(len(replies))

    await _together([visitor() for _ in range(at_once)])
    return Run(server, time.perf_counter() - started, tuple(replies))


def _warm_up(number: int) -> list[Message]:
    return [{"role": "user", "content": f"{number}: warm up, please"}]


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all works; at the first error, or when cancelled, cancel the unfinished ones."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _held(
    client: ChatClient, conversation: Conversation, words: Words | None
) -> AsyncIterator[Reply]:
    """Send the turns of a conversation one after another; yield each answer."""
    messages: list[Message] = [{"role": "system", "content": conversation.system}]
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.said})
        bias = words.steer(turn.said) if words else {}
        reply = await client.ask(messages, turn.tokens, bias)
        yield reply
        messages.append({"role": "assistant", "content": _same(reply.text, bool(words))})


def _same(text: str, steered: bool) -> str:
    """Return an answer with the space that it begins with, which some servers strip."""
    return " " + text if steered and not text.startswith(" ") else text
