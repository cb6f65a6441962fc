"""Workloads of chats with several turns, and of questions about retrieved passages (RAG)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Client, Row, Size, Workload

# -- chats of four turns ----------------------------------------------------------------------

Turns = list[tuple[str, int]]
"""Turns of a chat: the user's text, and the number of tokens of the answer."""


@sgl.function
def multi_turn_chat(s: Any, turns: Turns) -> None:
    for number, (said, tokens) in enumerate(turns):
        s += said
        s += sgl.gen(f"answer_{number}", max_tokens=tokens)


def multi_turn_chat_http(client: Client, turns: Turns) -> None:
    prompt = ""
    for said, tokens in turns:
        prompt += said
        prompt += client.complete(prompt, max_tokens=tokens)


def chat_rows(answers: tuple[int, int]) -> Callable[[Words, Size], list[Row]]:
    """Return a function that makes the rows of a chat workload, one row for each chat.

    Args:
        answers: least and largest number of tokens of an answer, at full size.
    """

    def rows(words: Words, size: Size) -> list[Row]:
        draw = random.Random(f"chats {answers}")
        return [{"turns": _turns(words, size, answers, draw, i)} for i in range(_sessions(size))]

    return rows


def _sessions(size: Size) -> int:
    return size.count(20, least=8)


def _turns(
    words: Words, size: Size, answers: tuple[int, int], draw: random.Random, session: int
) -> Turns:
    return [
        (
            f"User: {words.text(size.tokens(draw.randint(256, 512)), f'chat {session} {turn}')}\n"
            "Assistant:",
            size.tokens(draw.randint(*answers)),
        )
        for turn in range(4)
    ]


# -- retrieval-augmented generation -----------------------------------------------------------


@sgl.function
def rag(s: Any, demonstrations: str, passages: list[str], question: str, tokens: int) -> None:
    s += demonstrations
    s += "Context:\n" + "".join(f"[{i}] {text}\n" for i, text in enumerate(passages, 1))
    s += f"Question: {question}\nReasoning:" + sgl.gen("reasoning", max_tokens=tokens, stop="---")


def rag_http(
    client: Client, demonstrations: str, passages: list[str], question: str, tokens: int
) -> None:
    prompt = demonstrations
    prompt += "Context:\n" + "".join(f"[{i}] {text}\n" for i, text in enumerate(passages, 1))
    client.complete(f"{prompt}Question: {question}\nReasoning:", max_tokens=tokens, stop=["---"])


def rag_rows(words: Words, size: Size) -> list[Row]:
    demonstrations = words.text(size.tokens(1200), "rag") + "\n---\n"
    return [
        {
            "demonstrations": demonstrations,
            "passages": [words.text(size.tokens(110), f"rag {i} {n}") for n in range(3)],
            "question": words.text(size.tokens(20), f"rag {i}"),
            "tokens": size.tokens(60),
        }
        for i in range(size.count(150))
    ]


WORKLOADS = (
    Workload(
        "multi_turn_chat_short",
        "chats of four turns, answers of a few tokens",
        chat_rows((4, 8)),
        multi_turn_chat,
        multi_turn_chat_http,
    ),
    Workload(
        "multi_turn_chat_long",
        "chats of four turns, long answers",
        chat_rows((256, 512)),
        multi_turn_chat,
        multi_turn_chat_http,
    ),
    Workload("rag", "demonstrations, three retrieved passages", rag_rows, rag, rag_http),
)
