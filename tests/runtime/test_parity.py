"""The real model answers as mlx-lm's own `generate` does on the same float32 weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from sgl_mlx.core import SamplingParams
from sgl_mlx.models.loader import load
from sgl_mlx.runtime.engine import Engine
from tests.runtime import plain

NEW = 24
GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW)

FACTS = "".join(f"Fact {n}: the number {n} plus {n} makes {2 * n}. " for n in range(1, 45))
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    "a letter": "A",
    "a fact": "The capital of France is",
    "a story": "Once upon a time, in a village by the sea, there lived",
    "a list": "Fruits:\n1. Apples\n2. Pears\n3.",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "json": '{"name": "Ada Lovelace", "born": 1815, "known for": "',
    "a sum": "2 + 2 = 4\n3 + 3 = 6\n4 + 4 =",
    "accents": "Où se trouve la bibliothèque ? Elle est à côté de l'école, près",
    "other scripts": "東京は日本の首都です。Привет, мир! 🙂🚀",
    "a question": CHAT.format("What is the tallest mountain on Earth?"),
    "a short answer": CHAT.format("Say only the word yes."),
    "white space": "a  b   c\n\n\n\td ",
    "a long text": FACTS + "Fact 45: the number 45 plus 45 makes",
}


def mlx_lm_generate(module: nn.Module, engine: Engine, ids: list[int]) -> list[int]:
    tokenizer = engine.tokenizer
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    wrapped = TokenizerWrapper(theirs, eos_token_ids=sorted(tokenizer.eos_token_ids))
    steps = stream_generate(module, wrapped, ids, max_tokens=NEW)
    return [step.token for step in steps]


@pytest.fixture(scope="module")
def mlx_lm_model(smollm2: Engine) -> nn.Module:
    """mlx-lm's own layers with the dequantized weights; for the engine's thread."""
    return smollm2.run_on_model(lambda _: load("smollm2", dtype="float32").model)


@pytest.fixture(scope="module")
def encoded(smollm2: Engine) -> dict[str, list[int]]:
    return {name: smollm2.tokenizer.encode(text) for name, text in PROMPTS.items()}


@pytest.fixture(scope="module")
def right(
    smollm2: Engine, mlx_lm_model: nn.Module, encoded: dict[str, list[int]]
) -> dict[str, list[int]]:
    """Answers of mlx-lm, by prompt."""
    return {
        name: smollm2.run_on_model(lambda _, ids=ids: mlx_lm_generate(mlx_lm_model, smollm2, ids))
        for name, ids in encoded.items()
    }


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_alone_is_continued_as_mlx_lm_does(
    smollm2: Engine, encoded: dict[str, list[int]], right: dict[str, list[int]], name: str
) -> None:
    smollm2.flush_cache()
    answer = smollm2.generate(input_ids=encoded[name], sampling_params=GREEDY)
    assert answer["meta_info"]["cached_tokens"] == 0
    assert answer["output_ids"] == right[name]


def test_prompts_at_once_are_continued_as_alone_and_again_from_the_cache(
    smollm2: Engine, encoded: dict[str, list[int]], right: dict[str, list[int]]
) -> None:
    smollm2.flush_cache()
    for cached in (False, True):
        answers = smollm2.generate(input_ids=list(encoded.values()), sampling_params=GREEDY)
        found = [answer["output_ids"] for answer in answers]
        assert dict(zip(encoded, found, strict=True)) == right
        hits = [answer["meta_info"]["cached_tokens"] for answer in answers]
        assert hits == [len(ids) - 1 if cached else 0 for ids in encoded.values()]


def test_the_prompts_are_of_many_lengths_and_one_takes_several_chunks(
    smollm2: Engine, encoded: dict[str, list[int]]
) -> None:
    lengths = sorted(map(len, encoded.values()))
    assert lengths[0] == 1
    assert lengths[-1] > max(600, smollm2.config.chunked_prefill_size)
    assert len(set(lengths)) > 8


def test_some_answers_end_by_themselves(smollm2: Engine, right: dict[str, list[int]]) -> None:
    ends = smollm2.tokenizer.eos_token_ids
    assert any(tokens[-1] in ends for tokens in right.values())
    assert any(len(tokens) == NEW for tokens in right.values())


def test_logprobs_of_the_real_model_are_those_of_its_forward_pass(
    smollm2: Engine, mlx_lm_model: nn.Module, encoded: dict[str, list[int]]
) -> None:
    ids = encoded["a long text"][:100]
    expected = smollm2.run_on_model(lambda _: plain.log_softmax(mlx_lm_model, ids))
    asked: dict[str, Any] = {"return_logprob": True, "logprob_start_len": 0, "max_new_tokens": 0}
    for _ in range(2):
        rows = smollm2.generate(input_ids=ids, **asked)["meta_info"]["input_token_logprobs"]
        found = [p for p, *_ in rows[1:]]
        assert found == pytest.approx(
            [float(expected[i, t]) for i, t in enumerate(ids[1:])], abs=1e-4
        )


def test_the_model_runs_in_float32(smollm2: Engine) -> None:
    def logits(module: nn.Module) -> mx.array:
        return module(mx.array([[5, 6]]))

    assert smollm2.run_on_model(logits).dtype == mx.float32
