"""Workloads that branch: tree of thought, skeleton of thought, multi-chain, LLM judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Client, Row, Size, Workload

T = TypeVar("T")
Result = TypeVar("Result")

# -- tree of thought --------------------------------------------------------------------------

STAGES = ("plan", "execution", "reflection", "answer")
"""Headings of the four levels of the tree of thought."""

BRANCHES = 2


@sgl.function
def tree_of_thought(s: Any, question: str, prompts: list[str], tokens: int) -> list[str]:
    s += f"Question: {question}\n"
    leaves = [s]
    for stage, prompt in zip(STAGES, prompts, strict=True):
        for leaf in leaves:
            leaf += f"User: {prompt}\n{stage}"
        forks = [leaf.fork(BRANCHES) for leaf in leaves]
        leaves = [state for group in forks for state in group.states]
        for number, leaf in enumerate(leaves):
            leaf += f" {number % BRANCHES + 1}:"
            leaf += sgl.gen(stage, max_tokens=tokens) + "\n"
    return [leaf[STAGES[-1]] for leaf in leaves]


def tree_of_thought_http(client: Client, question: str, prompts: list[str], tokens: int) -> None:
    leaves = [f"Question: {question}\n"]
    for stage, prompt in zip(STAGES, prompts, strict=True):
        leaves = [
            f"{leaf}User: {prompt}\n{stage} {number}:"
            for leaf in leaves
            for number in range(1, BRANCHES + 1)
        ]
        written = side_by_side(lambda leaf: client.complete(leaf, max_tokens=tokens), leaves)
        leaves = [f"{leaf}{text}\n" for leaf, text in zip(leaves, written, strict=True)]


def tree_of_thought_rows(words: Words, size: Size) -> list[Row]:
    lengths = (65, 43, 33, 22)
    prompts = [words.text(size.tokens(n), f"tree {n}") for n in lengths]
    return [
        {
            "question": words.text(size.tokens(80), f"tree question {i}"),
            "prompts": prompts,
            "tokens": size.tokens(100),
        }
        for i in range(size.count(32))
    ]


# -- skeleton of thought ----------------------------------------------------------------------


@sgl.function
def expand_tip(s: Any, examples: str, topic: str, tip: str, tokens: int) -> None:
    s += f"{examples}Topic: {topic}\nTip: {tip}\nParagraph:"
    s += sgl.gen("paragraph", max_tokens=tokens, stop="\n\n")


@sgl.function
def skeleton_of_thought(
    s: Any, lead: str, examples: str, topic: str, tip: int, paragraph: int
) -> None:
    s += f"{lead}Topic: {topic}\n"
    backend, expanded = s.stream_executor.backend, []
    for number in range(1, 6):
        s += f"{number}."
        s += sgl.gen(f"tip_{number}", max_tokens=tip, stop=["\n", "."]) + "\n"
        arguments = (examples, topic, s[f"tip_{number}"], paragraph)
        expanded.append(expand_tip.run(*arguments, backend=backend, **SAMPLING))
    s += "".join(f"{number}.{state['paragraph']}\n" for number, state in enumerate(expanded, 1))


SAMPLING: dict[str, Any] = {"temperature": 0, "token_healing": False}
"""Sampling of nested runs; the outer run gets the suite's sampling."""


def skeleton_of_thought_http(
    client: Client, lead: str, examples: str, topic: str, tip: int, paragraph: int
) -> None:
    prompt = f"{lead}Topic: {topic}\n"

    def expand(tip_text: str) -> str:
        asked = f"{examples}Topic: {topic}\nTip: {tip_text}\nParagraph:"
        return client.complete(asked, max_tokens=paragraph, stop=["\n\n"])

    with ThreadPoolExecutor(5) as pool:
        expanded = []
        for number in range(1, 6):
            prompt += f"{number}."
            text = client.complete(prompt, max_tokens=tip, stop=["\n", "."])
            prompt += text + "\n"
            expanded.append(pool.submit(expand, text))
        for future in expanded:
            future.result()


def skeleton_of_thought_rows(words: Words, size: Size) -> list[Row]:
    return [
        {
            "lead": words.text(size.tokens(58), "skeleton") + "\n",
            "examples": words.text(size.tokens(327), "skeleton examples") + "\n",
            "topic": words.text(size.tokens(10), f"skeleton {i}"),
            "tip": size.tokens(24),
            "paragraph": size.tokens(128),
        }
        for i in range(size.count(32))
    ]


# -- multi-chain reasoning --------------------------------------------------------------------


@sgl.function
def multi_chain(s: Any, question: str, elicitings: list[str], chain: int, answer: int) -> None:
    s += f"Question: {question}\n"
    forks = s.fork(len(elicitings))
    for state, eliciting in zip(forks.states, elicitings, strict=True):
        state += eliciting
        state += sgl.gen("chain", max_tokens=chain, stop="Question")
    forks.join()
    for number, text in enumerate(s["chain"], 1):
        s += f"Solution {number}: {text}\n"
    s += "Answer:" + sgl.gen("answer", max_tokens=answer)


def multi_chain_http(
    client: Client, question: str, elicitings: list[str], chain: int, answer: int
) -> None:
    prompt = f"Question: {question}\n"
    chains = side_by_side(
        lambda e: client.complete(prompt + e, max_tokens=chain, stop=["Question"]),
        elicitings,
    )
    prompt += "".join(f"Solution {number}: {text}\n" for number, text in enumerate(chains, 1))
    client.complete(prompt + "Answer:", max_tokens=answer)


def multi_chain_rows(words: Words, size: Size) -> list[Row]:
    elicitings = [words.text(size.tokens(15), f"eliciting {n}") for n in range(5)]
    return [
        {
            "question": words.text(size.tokens(80), f"multi-chain {i}"),
            "elicitings": elicitings,
            "chain": size.tokens(128),
            "answer": size.tokens(16),
        }
        for i in range(size.count(64))
    ]


# -- LLM judge --------------------------------------------------------------------------------


@sgl.function
def llm_judge(
    s: Any, system: str, article: str, dimensions: list[str], judgement: int, score: int
) -> None:
    s += f"{system}\nArticle: {article}\n"
    forks = s.fork(len(dimensions))
    for state, dimension in zip(forks.states, dimensions, strict=True):
        state += f"{dimension}\nJudgement:"
        state += sgl.gen("judgement", max_tokens=judgement, stop="END")
    forks.join()
    s += "".join(f"Judgement: {text}\n" for text in s["judgement"])
    s += "Score:" + sgl.gen("score", max_tokens=score)


def llm_judge_http(
    client: Client, system: str, article: str, dimensions: list[str], judgement: int, score: int
) -> None:
    prompt = f"{system}\nArticle: {article}\n"
    judgements = side_by_side(
        lambda dimension: client.complete(
            f"{prompt}{dimension}\nJudgement:", max_tokens=judgement, stop=["END"]
        ),
        dimensions,
    )
    prompt += "".join(f"Judgement: {text}\n" for text in judgements)
    client.complete(f"{prompt}Score:", max_tokens=score)


def llm_judge_rows(words: Words, size: Size) -> list[Row]:
    return [
        {
            "system": words.text(size.tokens(33), "judge"),
            "article": words.text(size.tokens(796), f"judge article {i}"),
            "dimensions": [words.text(size.tokens(90), f"judge {n}") for n in range(6)],
            "judgement": size.tokens(128),
            "score": 2,
        }
        for i in range(size.count(25, least=4))
    ]


def side_by_side(call: Callable[[T], Result], items: Iterable[T]) -> list[Result]:
    """Make one call for each item, all at the same time; returns the results in order."""
    todo = list(items)
    with ThreadPoolExecutor(len(todo)) as pool:
        return list(pool.map(call, todo))


WORKLOADS = (
    Workload(
        "tree_of_thought",
        "four levels of two branches, 30 generations per question",
        tree_of_thought_rows,
        tree_of_thought,
        tree_of_thought_http,
    ),
    Workload(
        "skeleton_of_thought",
        "five tips, each expanded by a nested program while the next is written",
        skeleton_of_thought_rows,
        skeleton_of_thought,
        skeleton_of_thought_http,
    ),
    Workload(
        "multi_chain",
        "five chains of reasoning, merged",
        multi_chain_rows,
        multi_chain,
        multi_chain_http,
    ),
    Workload(
        "llm_judge",
        "six judgements of an article, merged into a score",
        llm_judge_rows,
        llm_judge,
        llm_judge_http,
    ),
)
