"""Generated constraints over every kind of tokenizer: what comes out matches, or was cut by length.

A sample by default; `CONSTRAINTS=3000` runs so many, shared out among the kinds.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.runtime.constraints.constrained_fixtures import figures
from tests.runtime.constraints.generated import random_case
from tests.runtime.constraints.walks import walk

KINDS = ("byte-level", "metaspace", "unigram", "added", "duplicates", "foreign")
COUNT = int(os.environ.get("CONSTRAINTS", "900")) // len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_constraint_lets_through_matches_it(kind: str) -> None:
    cut = 0
    for seed in range(COUNT):
        rng = random.Random(f"{kind} {seed}")
        case = random_case(rng)
        text = walk(kind, rng, **case.params)  # which fails at a dead end
        if text is None:
            cut += 1
            continue
        assert case.matches(text), (case.params, text)
    figures.info(f"{kind}: {COUNT} constraints, {COUNT - cut} matched, {cut} cut by length")
    assert cut < COUNT / 2
