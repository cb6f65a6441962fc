"""Random ways through grammars over synthetic tokenizers, without a model."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from sgl_mlx.runtime.constraints.grammar import GrammarCompiler
from sgl_mlx.sampling import SamplingParams
from tests.tokenizer.synthetic import tokenizer

LIMIT = 60


@cache
def compiler(kind: str) -> GrammarCompiler:
    return GrammarCompiler(tokenizer(kind), tokenizer(kind).vocab_size + 5)


def walk(kind: str, rng: random.Random, **grammar: str) -> str | None:
    """The text of a random way through a grammar; None where it is longer than the limit."""
    constraint = compiler(kind).constraint(SamplingParams(**grammar))
    assert constraint is not None
    ours, tokens = tokenizer(kind), list[int]()
    while len(tokens) < LIMIT:
        bits = np.unpackbits(np.frombuffer(constraint.allowed(), np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits).tolist()
        assert constraint.error is None, (grammar, constraint.error)
        assert allowed, (grammar, tokens)
        token = rng.choice(allowed)
        if token in ours.eos_token_ids:
            break
        constraint.accept(token)
        tokens += [token, *constraint.forced()]
        assert constraint.error is None, (grammar, tokens, constraint.error)
        if constraint.complete:
            break
    else:
        return None
    return ours.decode(tokens, at_start=False)
