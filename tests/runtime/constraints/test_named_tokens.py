"""Special tokens that a grammar names are part of the text, whatever the tokenizer."""

from __future__ import annotations

import random
import re

import pytest

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.request.output import TextOutput
from tests.runtime.constraints.walks import compiler
from tests.tokenizer.synthetic import KINDS, tokenizer

ENDS = ("</s>", "<|im_end|>")


def output_of(kind: str, grammar: str, rng: random.Random) -> TextOutput:
    """Push a random way through a grammar to an output, as the scheduler does."""
    ours, params = tokenizer(kind), SamplingParams(grammar=grammar, max_new_tokens=200)
    constraint = compiler(kind).constraint(params)
    assert constraint is not None
    output = TextOutput(params, ours, ours.eos_token_ids, lambda _: None)
    reason, pending = None, constraint.forced()
    while reason is None:
        if not pending:
            mask = int.from_bytes(constraint.allowed(), "little")
            assert constraint.error is None
            pending = [rng.choice([t for t in range(mask.bit_length()) if mask >> t & 1])]
            constraint.accept(pending[0])
            pending += constraint.forced()
        reason = output.push(pending.pop(0), None)
        if reason is None and not pending and constraint.complete:
            reason = FinishReason("stop")
    output.finish(reason)
    return output


def names_of(kind: str) -> list[str]:
    """Return the texts of added tokens that can be written as `<name>` in Lark."""
    added = sorted(tokenizer(kind).backend.get_added_tokens_decoder())
    texts = [tokenizer(kind).token_text(token) for token in added]
    return [t for t in texts if t[:1] == "<" and t.isascii() and " " not in t]


@pytest.mark.parametrize("kind", KINDS)
def test_named_special_tokens_are_shown(kind: str) -> None:
    for seed in range(40):
        rng = random.Random(f"{kind} {seed}")
        usable = [name for name in names_of(kind) if name not in ENDS]
        parts = [rng.choice([*usable, '"x"', '"y z"']) for _ in range(rng.randint(1, 6))]
        output = output_of(kind, "start: " + " ".join(parts), rng)
        assert output.text == "".join(part.strip('"') for part in parts)
        assert "<|im_start|>" in usable


@pytest.mark.parametrize("end", ENDS)
def test_a_named_end_token_is_refused_and_its_text_is_not(end: str) -> None:
    with pytest.raises(InvalidParamsError, match=re.escape(f"names {end}, which ends an answer")):
        compiler("added").constraint(SamplingParams(grammar=f'start: "a" {end} "b"'))
    output = output_of("added", f'start: "a{end}b"', random.Random(0))
    assert output.text == f"a{end}b"
