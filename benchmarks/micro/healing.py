"""Accuracy of token healing on texts that are cut at random and continued greedily.

A cut lies inside or between tokens. A continuation is right if it contains the token that the uncut
text has across the cut, beginning at the same byte.
"""

from __future__ import annotations

import inspect
import itertools
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sgl_mlx.runtime.engine import Engine
from sgl_mlx.tokenizer import Tokenizer

_MODULES = (
    *("argparse", "asyncio.queues", "collections", "csv", "email.message", "functools", "heapq"),
    *("json.decoder", "logging", "pathlib", "random", "shutil", "statistics"),
)
_PROMPT_TOKENS = 24


@dataclass(frozen=True)
class Cut:
    """A text that was cut.

    Attributes:
        prompt: the text up to the cut.
        token: id of the uncut text's token that ends after the cut.
        typed: bytes of that token that lie before the cut.
    """

    prompt: str
    token: int
    typed: int


def cuts(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Cut]:
    """Draw `count` extracts of standard library source, each cut at random within a token."""
    rng = random.Random(seed)
    sources = [textwrap.dedent(inspect.getsource(import_module(name))) for name in _MODULES]
    found: list[Cut] = []
    while len(found) < count:
        source = rng.choice(sources)
        start = rng.randrange(len(source) - 400)
        ids = tokenizer.encode(source[start : start + 400], add_special=False)
        if len(ids) > _PROMPT_TOKENS + 1:
            found.append(_cut(tokenizer, ids, rng))
    return found


def _cut(tokenizer: Tokenizer, ids: Sequence[int], rng: random.Random) -> Cut:
    """Cut a text after `_PROMPT_TOKENS` tokens and some characters, possibly none, of the next."""
    whole = tokenizer.decode(ids[:_PROMPT_TOKENS], at_start=False)
    token = ids[_PROMPT_TOKENS]
    word = tokenizer.decode([token], at_start=False)
    typed = word[: rng.randrange(len(word))]
    return Cut(whole + typed, token, len(typed.encode()))


def hits(engine: Engine, corpus: Sequence[Cut], healing: bool) -> int:
    """Count the cuts whose greedy continuation contains the uncut text's token.

    The module's docstring tells how a text is cut.
    """
    params = {"temperature": 0, "max_new_tokens": 1, "token_healing": healing}
    answers = engine.generate([cut.prompt for cut in corpus], params)
    return sum(_hit(c, a, engine.tokenizer) for c, a in zip(corpus, answers, strict=True))


def _hit(cut: Cut, answer: dict[str, Any], tokenizer: Tokenizer) -> bool:
    ids = answer["output_ids"]
    ends = list(itertools.accumulate(len(tokenizer.token_bytes(token)) for token in ids))
    taken_back = ends[-1] - len(answer["text"].encode())
    return (taken_back - cut.typed, cut.token) in zip([0, *ends], ids, strict=False)


def main(count: int = 1000) -> None:
    with Engine("smollm2") as engine:
        corpus = cuts(engine.tokenizer, count)
        plain, healed = hits(engine, corpus, False), hits(engine, corpus, True)
    print(f"first token as in the uncut text, {count} cuts:")
    print(f"{healed / count:.1%} with healing, {plain / count:.1%} without")


if __name__ == "__main__":
    main()
