"""Choices after a prompt: which tokens count, and how the answers are put together."""

from __future__ import annotations

from sgl_mlx.core import Completion, FinishReason, Logprobs, TokenLogprob
from sgl_mlx.runtime.request.encode import Encoded
from sgl_mlx.runtime.request.scoring import choice_scores, continue_with
from sgl_mlx.tokenizer import Tokenizer
from tests.models.conftest import KINDS, TOKENS

A, B, AB = TOKENS.index("a"), TOKENS.index("b"), TOKENS.index("ab")
X = TOKENS.index("<0x78>")
METADATA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": KINDS,
    "tokenizer.ggml.scores": [-float(n) for n in range(len(TOKENS))],
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.add_bos_token": False,
}


def test_the_tokens_of_a_choice_count() -> None:
    found, start = continue_with(Encoded((X, A)), "xb", Tokenizer.from_gguf(METADATA))
    assert (found.tokens, start) == ((X, A, X, B), 2)


def test_a_prompt_token_that_merges_with_the_choice_counts_too() -> None:
    found, start = continue_with(Encoded((X, A)), "b", Tokenizer.from_gguf(METADATA))
    assert (found.tokens, start) == ((X, AB), 1)


def test_what_the_prompt_comes_after_stays() -> None:
    prompt = Encoded((X,), after=(Encoded((A, B)),), trunk_length=2, gap=3)
    found, _ = continue_with(prompt, "x", Tokenizer.from_gguf(METADATA))
    assert (found.after, found.gap, found.tokens) == (prompt.after, 3, (X, X))


def completion(cached: int, *logprobs: float) -> Completion:
    tokens = tuple(TokenLogprob(p, i) for i, p in enumerate(logprobs))
    reason = FinishReason("length", length=0)
    return Completion("", (), reason, 9, cached, logprobs=Logprobs(input=tokens))


def test_answers_are_put_together_in_the_order_of_the_choices() -> None:
    found = [completion(4, -1.0), completion(7, -2.0, -3.0)]
    alone = [completion(0, -4.0), completion(0, -5.0, -6.0)]
    scores = choice_scores(["p", "q"], 6, [*found, *alone])
    assert [c.text for c in scores.choices] == ["p", "q"]
    assert [[t.logprob for t in c.tokens] for c in scores.choices] == [[-1.0], [-2.0, -3.0]]
    unconditional = [[t.logprob for t in c.unconditional or ()] for c in scores.choices]
    assert unconditional == [[-4.0], [-5.0, -6.0]]
    assert (scores.prompt_tokens, scores.cached_tokens) == (6, 4)


def test_without_them_there_are_no_unconditional_scores() -> None:
    scores = choice_scores(["p"], 3, [completion(8, -1.0)])
    assert scores.choices[0].unconditional is None
    assert scores.cached_tokens == 3  # of the prompt alone, though more was cached
