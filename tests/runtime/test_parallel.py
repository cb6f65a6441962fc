"""Branches side by side and gaps between positions, against masks and positions made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sgl_mlx.core import Completion, Parallel, Part, SamplingParams, Shift, Text
from sgl_mlx.runtime.engine import Engine
from tests.runtime import plain

NEW = 8
TRUNK, SUFFIX = "The trunk; ", "what they say: "
BRANCHES = ["first one. ", "second, longer than the others. ", "3 "]
PARAMS = SamplingParams(
    temperature=0, max_new_tokens=NEW, ignore_eos=True, return_logprob=True, logprob_start_len=0
)


def ids(engine: Engine, text: str, first: bool = False) -> list[int]:
    return engine.tokenizer.encode(text, add_special=first)


def branch(text: str) -> tuple[Part, ...]:
    return (Text(text),)


class ByHand:
    """Tokens with their positions, and what each of them sees."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self._seen: list[set[int]] = []

    def add(self, tokens: list[int], position: int, seen: set[int]) -> set[int]:
        """Append tokens that see `seen` and those before them here; returns all they see."""
        for i, token in enumerate(tokens):
            seen = {*seen, len(self.tokens)}
            self.tokens.append(token)
            self.positions.append(position + i)
            self._seen.append(seen)
        return seen

    def mask(self) -> Any:
        return np.array([[j in seen for j in range(len(self.tokens))] for seen in self._seen])


def assert_as_by_hand(engine: Engine, found: Completion, hand: ByHand, own: int) -> None:
    """The last `own` tokens are the prompt's own; the output follows them greedily."""
    assert found.prompt_tokens == len(hand.tokens)
    last, seen = hand.positions[-1], hand.mask()[-1]
    hand.add(list(found.token_ids), last + 1, set(np.flatnonzero(seen)))
    right = engine.run_on_model(
        lambda module: plain.llama(plain.copy_of(module), hand.tokens, hand.positions, hand.mask())
    )
    start = len(hand.tokens) - NEW - own
    assert found.logprobs is not None
    scored = [*found.logprobs.input[1:], *found.logprobs.output]
    expected = [right[i, hand.tokens[i + 1]] for i in range(start, len(hand.tokens) - 1)]
    assert [t.token_id for t in scored] == hand.tokens[start + 1 :]
    assert [t.logprob for t in scored] == pytest.approx(expected, abs=1e-4)
    assert list(found.token_ids) == right[-NEW - 1 : -1].argmax(axis=-1).tolist()


def submit(engine: Engine, *parts: Part) -> Completion:
    return engine.submit(parts, PARAMS).result()[0]


def test_the_reference_by_hand_is_the_plain_model_without_gaps_and_branches(toy: Engine) -> None:
    tokens = ids(toy, TRUNK + SUFFIX)
    hand = ByHand()
    hand.add(tokens, 0, set())
    by_hand, whole = toy.run_on_model(
        lambda module: (
            plain.llama(plain.copy_of(module), tokens, hand.positions, hand.mask()),
            plain.logprobs(module, tokens),
        )
    )
    np.testing.assert_allclose(by_hand, whole, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_branches_do_not_see_each_other_and_what_follows_sees_all(toy: Engine, count: int) -> None:
    trunk, suffix = ids(toy, TRUNK, first=True), ids(toy, SUFFIX)
    branches = [ids(toy, text) for text in BRANCHES[:count]]
    parts = Text(TRUNK), Parallel(tuple(branch(text) for text in BRANCHES[:count])), Text(SUFFIX)
    toy.flush_cache()
    for cached in (False, True):
        hand = ByHand()
        above = hand.add(trunk, 0, set())
        all_seen = set(above)
        for tokens in branches:
            all_seen |= hand.add(tokens, len(trunk), above)
        hand.add(suffix, len(trunk) + max(map(len, branches)), all_seen)
        found = submit(toy, *parts)
        assert (found.cached_tokens > len(trunk) * count) is cached
        assert_as_by_hand(toy, found, hand, len(suffix))


def test_a_branch_may_branch_again(toy: Engine) -> None:
    inner = (*branch("p "), Parallel((branch("qq "), branch("r "))), Text("s "))
    parts = Text(TRUNK), Parallel((inner, branch(BRANCHES[1]))), Text(SUFFIX)
    n = len(ids(toy, TRUNK, first=True))
    hand = ByHand()
    trunk = hand.add(ids(toy, TRUNK, first=True), 0, set())
    p = hand.add(ids(toy, "p "), n, trunk)
    start = n + len(ids(toy, "p "))
    both = hand.add(ids(toy, "qq "), start, p) | hand.add(ids(toy, "r "), start, p)
    first = hand.add(ids(toy, "s "), start + len(ids(toy, "qq ")), both)
    second = hand.add(ids(toy, BRANCHES[1]), n, trunk)
    end = max(n + len(ids(toy, BRANCHES[1])), start + len(ids(toy, "qq s ")))
    hand.add(ids(toy, SUFFIX), end, first | second)
    assert_as_by_hand(toy, submit(toy, *parts), hand, len(ids(toy, SUFFIX)))


@pytest.mark.parametrize("gap", [1, 40])
def test_text_after_a_gap_stands_further_on_and_sees_what_was_before(toy: Engine, gap: int) -> None:
    trunk, suffix = ids(toy, TRUNK, first=True), ids(toy, SUFFIX)
    for _ in range(2):
        hand = ByHand()
        hand.add(suffix, len(trunk) + gap, hand.add(trunk, 0, set()))
        found = submit(toy, Text(TRUNK), Shift(gap), Text(SUFFIX))
        assert_as_by_hand(toy, found, hand, len(suffix))


def test_branches_may_stand_after_gaps_of_their_own(toy: Engine) -> None:
    trunk, suffix = ids(toy, TRUNK, first=True), ids(toy, SUFFIX)
    first, second = (ids(toy, text) for text in BRANCHES[:2])
    shifted = Parallel(((Shift(5), Text(BRANCHES[0])), (Shift(90), Text(BRANCHES[1]))))
    hand = ByHand()
    above = hand.add(trunk, 0, set())
    a = hand.add(first, len(trunk) + 5, above)
    b = hand.add(second, len(trunk) + 90, above)
    hand.add(suffix, len(trunk) + 90 + len(second), a | b)
    assert_as_by_hand(toy, submit(toy, Text(TRUNK), shifted, Text(SUFFIX)), hand, len(suffix))


def test_joined_and_plain_requests_in_one_batch_answer_as_alone(toy: Engine) -> None:
    prompts: list[tuple[Part, ...]] = [
        (Text(TRUNK), Parallel((branch(BRANCHES[0]), branch(BRANCHES[1]))), Text(SUFFIX)),
        (Text(TRUNK), Shift(40), Text(SUFFIX)),
        (Text(TRUNK + BRANCHES[0] + SUFFIX),),
        (Text(TRUNK + SUFFIX),),
    ]
    alone = []
    for prompt in prompts:
        toy.flush_cache()
        alone.append(submit(toy, *prompt).token_ids)
    toy.flush_cache()
    futures = [toy.submit(prompt, PARAMS) for prompt in prompts]
    assert [future.result()[0].token_ids for future in futures] == alone
