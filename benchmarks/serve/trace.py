"""Traces: conversations that clients of a chat server hold, made of words with exact tokens.

Every client sends its whole conversation each turn, with the server's own answers in it, as chat
programs and agents do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size

_TOOLS = 16
_TOOL_TOKENS = (80, 20)
"""Words in the description of a tool, and in that of its argument."""


@dataclass(frozen=True)
class Turn:
    """One turn: the user's text, and the number of tokens that the server shall answer."""

    said: str
    tokens: int


@dataclass(frozen=True)
class Conversation:
    """The system message and the turns that one client sends, one turn after another."""

    system: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Trace:
    """A kind of conversation.

    Args:
        about: description in one line, for the report.
        make: makes conversation number `i`; equal numbers give equal conversations.
    """

    name: str
    about: str
    make: Callable[[Words, Size, int], Conversation]

    def conversations(self, words: Words, size: Size, count: int) -> list[Conversation]:
        """Return conversations 0 to `count - 1`."""
        return [self.make(words, size, i) for i in range(count)]


def _chat(words: Words, size: Size, number: int) -> Conversation:
    """Four turns of a few sentences, after a short system message."""
    draw = random.Random(f"chat {number}")
    turns = [
        Turn(
            words.text(size.tokens(draw.randint(32, 96)), f"chat {number} {turn}"),
            size.tokens(draw.randint(64, 128), least=4),
        )
        for turn in range(4)
    ]
    return Conversation(words.text(size.tokens(40), "chat"), tuple(turns))


def _agent(words: Words, size: Size, number: int) -> Conversation:
    """A task and two observations, after 4,000 tokens of instructions and tools.

    The tools stand in the system message as JSON, the same for every server. Servers render a
    `tools` field differently, which would give their prompts different lengths.
    """
    draw = random.Random(f"agent {number}")
    system = f"{words.text(size.tokens(1500), 'agent')}\n\nTools:\n{_tools(words, size)}"
    task = Turn(words.text(size.tokens(draw.randint(60, 180)), f"task {number}"), size.tokens(48))
    seen = [
        Turn(
            f"Observation: {words.text(size.tokens(draw.randint(80, 240)), f'{number} saw {i}')}",
            size.tokens(draw.randint(32, 64), least=4),
        )
        for i in range(2)
    ]
    return Conversation(system, (task, *seen))


def _tools(words: Words, size: Size) -> str:
    about, argument = (size.tokens(tokens) for tokens in _TOOL_TOKENS)
    return "\n".join(
        json.dumps(
            {
                "name": f"tool_{i}",
                "description": words.text(about, f"tool {i}"),
                "parameters": {
                    "type": "object",
                    "properties": {
                        "value": {
                            "type": "string",
                            "description": words.text(argument, f"argument {i}"),
                        }
                    },
                },
            }
        )
        for i in range(_TOOLS)
    )


TRACES = {
    trace.name: trace
    for trace in (
        Trace("chat", "chats of four turns, with little in common", _chat),
        Trace("agent", "agents of three turns behind the same 4,000 tokens", _agent),
    )
}
