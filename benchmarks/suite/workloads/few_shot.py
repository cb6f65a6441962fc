"""Few-shot workloads: many questions that follow the same examples.

MMLU has examples for each subject and answers of one token. HellaSwag scores four endings of each
text. GSM-8K has answers with reasoning.
"""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Client, Row, Size, Workload

# -- MMLU -------------------------------------------------------------------------------------


@sgl.function
def mmlu(s: Any, examples: str, question: str) -> None:
    s += examples + question
    s += sgl.gen("answer", max_tokens=1)


def mmlu_http(client: Client, examples: str, question: str) -> None:
    client.complete(examples + question, max_tokens=1)


def mmlu_rows(words: Words, size: Size) -> list[Row]:
    subjects, questions = size.count(10, least=2), size.count(140)
    return [
        {
            "examples": _examples(words, f"mmlu {subject}", 5, size.tokens(900)),
            "question": f"Question: {words.text(size.tokens(100), f'mmlu {subject} {i}')}\nAnswer:",
        }
        for subject in range(subjects)
        for i in range(questions)
    ]


# -- HellaSwag --------------------------------------------------------------------------------


@sgl.function
def hellaswag(s: Any, examples: str, question: str, endings: list[str]) -> None:
    s += examples + question
    s += sgl.select("answer", choices=endings)


def hellaswag_http(client: Client, examples: str, question: str, endings: list[str]) -> None:
    client.score(examples + question, endings)


def hellaswag_rows(words: Words, size: Size) -> list[Row]:
    examples = _examples(words, "hellaswag", 20, size.tokens(1400))
    return [
        {
            "examples": examples,
            "question": f"Activity: {words.text(size.tokens(50), f'hellaswag {i}')}\nEnding:",
            "endings": [
                " " + words.text(size.tokens(20), f"hellaswag {i} {ending}") for ending in range(4)
            ],
        }
        for i in range(size.count(200))
    ]


# -- GSM-8K -----------------------------------------------------------------------------------

ANSWER = 128


@sgl.function
def gsm8k(s: Any, examples: str, question: str, tokens: int) -> None:
    s += examples + question
    s += sgl.gen("answer", max_tokens=tokens, stop="Question")


def gsm8k_http(client: Client, examples: str, question: str, tokens: int) -> None:
    client.complete(examples + question, max_tokens=tokens, stop=["Question"])


def gsm8k_rows(words: Words, size: Size) -> list[Row]:
    examples = _examples(words, "gsm8k", 5, size.tokens(850))
    return [
        {
            "examples": examples,
            "question": f"Question: {words.text(size.tokens(80), f'gsm8k {i}')}\nAnswer:",
            "tokens": size.tokens(ANSWER),
        }
        for i in range(size.count(200))
    ]


def _examples(words: Words, seed: str, count: int, tokens: int) -> str:
    each = max(tokens // count, 8)
    return "".join(
        f"Question: {words.text(each * 3 // 4, f'{seed} question {i}')}\n"
        f"Answer: {words.text(each // 4, f'{seed} answer {i}')}\n\n"
        for i in range(count)
    )


WORKLOADS = (
    Workload("mmlu", "5 examples per subject, answers of one token", mmlu_rows, mmlu, mmlu_http),
    Workload(
        "hellaswag",
        "20 examples, four endings of each text are scored",
        hellaswag_rows,
        hellaswag,
        hellaswag_http,
    ),
    Workload("gsm8k", "5 examples, reasoning before an answer", gsm8k_rows, gsm8k, gsm8k_http),
)
