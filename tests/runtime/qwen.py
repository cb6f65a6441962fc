"""Qwen models of toy size behind engines, and what transformers answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sgl_mlx.core import Completion, Generated, Image, Part, Prompt, SamplingParams
from sgl_mlx.runtime.engine import Engine
from tests.models.vision.conftest import Arrays, read_golden
from tests.models.vision.pictures import pictures

Open = Callable[..., Engine]

NAMES = ["qwen3_5", "qwen3_vl"]
CASES = ["40x60", "60x40", "16x16", "13x17", "20x100", "several"]
START, END, IMAGE = 60, 61, 62
NEW = 12
PARAMS = SamplingParams(
    max_new_tokens=NEW, temperature=0, ignore_eos=True, token_healing=False, return_logprob=True
)


def golden(name: str, case: str) -> Arrays:
    return read_golden(name).cases[case]


def said(engine: Engine, ids: Sequence[int]) -> Part:
    """These tokens, whatever other tokens spell the same text."""
    text = engine.tokenizer.decode(list(ids), at_start=False)
    return Generated(text, tuple(ids))


def prompt(engine: Engine, name: str, case: str) -> Prompt:
    """The prompt of a golden: its texts as tokens, its pictures without the tokens around them."""
    shown = iter(pictures(case))
    parts: list[Part] = []
    for ids in _texts(golden(name, case)["tokens"].tolist()):
        parts += [said(engine, ids), Image(next(shown, None))]
    return tuple(parts[:-1])


def _texts(tokens: list[int]) -> Iterator[list[int]]:
    """Yield the tokens before, between and after pictures."""
    text: list[int] = []
    for token in tokens:
        if token == START:
            yield text
            text = []
        elif token not in (IMAGE, END):
            text.append(token)
    yield text


def expected(name: str, case: str) -> list[int]:
    found: list[int] = golden(name, case)["continued"].tolist()
    return found


def expected_logprobs(name: str, case: str) -> list[float]:
    """Log-probabilities of all tokens of the prompt but the first."""
    values = golden(name, case)
    logits = values["logits"].astype(np.float64)
    every = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return [float(every[i, token]) for i, token in enumerate(values["tokens"][1:])]


def ask(engine: Engine, *prompts: Prompt, params: SamplingParams = PARAMS) -> list[Completion]:
    futures = [engine.submit(given, params) for given in prompts]
    return [future.result()[0] for future in futures]


def tokens(completion: Completion) -> list[int]:
    return list(completion.token_ids)


def stats(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.get_server_info()["stats"]
    return found
