"""Workloads of agents: many calls that begin with the same instructions.

ReAct appends thought, action and observation to one prompt and calls the model again; each output
is replaced by a recorded step. Generative agents make short calls of five kinds, one after another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Client, Row, Size, Workload

# -- ReAct ------------------------------------------------------------------------------------


@sgl.function
def react(s: Any, instructions: str, question: str, steps: list[str], tokens: int) -> None:
    s += instructions + question
    for number, recorded in enumerate(steps, 1):
        s += f"Thought {number}:"
        asked = s.fork(1)
        asked += sgl.gen("thought_action", max_tokens=tokens, stop="Observation")
        asked.join()
        s += recorded


def react_http(
    client: Client, instructions: str, question: str, steps: list[str], tokens: int
) -> None:
    prompt = instructions + question
    for number, recorded in enumerate(steps, 1):
        prompt += f"Thought {number}:"
        client.complete(prompt, max_tokens=tokens, stop=["Observation"])
        prompt += recorded


def react_rows(words: Words, size: Size) -> list[Row]:
    instructions = words.text(size.tokens(1850), "react") + "\n"
    return [
        {
            "instructions": instructions,
            "question": f"Question: {words.text(size.tokens(25), f'react {i}')}\n",
            "steps": _steps(words, size, i),
            "tokens": size.tokens(40),
        }
        for i in range(size.count(100))
    ]


def _steps(words: Words, size: Size, chain: int) -> list[str]:
    """Draw the steps of one chain: two to five, most often four.

    Each step is a thought and an observation; the lengths of the observations differ widely.
    """
    draw = random.Random(f"react {chain}")
    [count] = draw.choices([2, 3, 4, 5], [5, 25, 40, 30])
    observed = [min(int(draw.lognormvariate(4.4, 0.7)), 489) for _ in range(count)]
    return [
        f" {words.text(size.tokens(37), f'react {chain} thought {i}')}\n"
        f"Observation {i + 1}: {words.text(size.tokens(n), f'react {chain} observation {i}')}\n"
        for i, n in enumerate(observed)
    ]


# -- generative agents ------------------------------------------------------------------------


@sgl.function
def agent(s: Any, prompt: str, tokens: int, until: str) -> None:
    s += prompt
    s += sgl.gen("answer", max_tokens=tokens, stop=until)


def agent_http(client: Client, prompt: str, tokens: int, until: str) -> None:
    client.complete(prompt, max_tokens=tokens, stop=[until])


@dataclass(frozen=True)
class Kind:
    """One kind of question that generative agents ask; its prompt is lead, arguments and tail.

    Attributes:
        share: weight with which this kind is drawn.
        lead, tail: tokens of the constant texts before and after the arguments.
        arguments: tokens of each argument.
        output: tokens of the answer.
        stop: string that ends the answer.
    """

    name: str
    share: int
    lead: int
    arguments: tuple[int, ...]
    tail: int
    output: int
    stop: str = "---"


KINDS = (
    Kind("poignancy_event", 6, 7, (180, 40), 87, 2),
    Kind("generate_event_triple", 3, 172, (30,), 8, 20, ")"),
    Kind("generate_pronunciatio", 2, 20, (12,), 11, 6),
    Kind("action_location_sector", 1, 333, (120, 60), 92, 10, "}"),
    Kind("action_location_object", 1, 186, (25, 40), 75, 5, "}"),
)


def agent_rows(words: Words, size: Size) -> list[Row]:
    """Return one row for each call, whose prompt is of a kind drawn from `KINDS`.

    The first argument in the prompt is one of five texts of this kind, so it recurs. All other
    arguments are new in each row.
    """
    draw = random.Random("agents")
    rows: list[Row] = []
    for i in range(size.count(300)):
        [kind] = draw.choices(KINDS, [kind.share for kind in KINDS])
        seeds = [f"{kind.name} {i} {n}" for n in range(len(kind.arguments))]
        seeds[0] = f"{kind.name} of {draw.randrange(5)}"
        given = zip(kind.arguments, seeds, strict=True)
        parts = [
            words.text(size.tokens(kind.lead), f"{kind.name} lead"),
            *(words.text(size.tokens(tokens), seed) for tokens, seed in given),
            words.text(size.tokens(kind.tail), f"{kind.name} tail"),
        ]
        prompt = "\n".join(parts) + "\nAnswer:"
        rows.append({"prompt": prompt, "tokens": kind.output, "until": kind.stop})
    return rows


WORKLOADS = (
    Workload("react", "chains of thought, action, observation", react_rows, react, react_http),
    Workload(
        "generative_agents",
        "small questions of five kinds, strictly one after another",
        agent_rows,
        agent,
        agent_http,
        concurrency=1,
    ),
)
