"""Prompts of parts as tokens, and what comes before them."""

from __future__ import annotations

import pytest

from sgl_mlx.core import Generated, Parallel, Prompt, SamplingParams, Shift, Text
from sgl_mlx.errors import PromptError
from sgl_mlx.runtime.cache.radix import PLAIN
from sgl_mlx.runtime.request.encode import Encoded, encode
from sgl_mlx.runtime.request.output import Silent
from sgl_mlx.tokenizer import Tokenizer
from tests.models.conftest import KINDS, TOKENS

A, B, AB = TOKENS.index("a"), TOKENS.index("b"), TOKENS.index("ab")
END = 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """SentencePiece with the merge a + b = ab, bytes for the rest, no space put before a text."""
    metadata = {"model": "llama", "tokens": TOKENS, "token_type": KINDS}
    metadata |= {"scores": [-float(n) for n in range(len(TOKENS))]}
    metadata |= {"eos_token_id": END, "add_space_prefix": False, "add_bos_token": False}
    return Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENS.index(c) if c in "ab" else TOKENS.index(f"<0x{ord(c):02X}>") for c in text)


def enc(tokenizer: Tokenizer, *prompt: object) -> Encoded:
    return encode(tuple(prompt), tokenizer)  # type: ignore[arg-type]


# -- plain text -------------------------------------------------------------------------------


def test_texts_one_after_another_are_tokens_of_the_whole_text(tokenizer: Tokenizer) -> None:
    assert enc(tokenizer, Text("xa"), Text("by")) == Encoded((*ids("x"), AB, *ids("y")))
    assert enc(tokenizer, Text("xaby")) == enc(tokenizer, Text("xa"), Text("by"))


def test_generated_tokens_are_kept_though_their_text_would_be_encoded_otherwise(
    tokenizer: Tokenizer,
) -> None:
    found = enc(tokenizer, Text("x"), Generated("ab", (A, B)))
    assert found.tokens == (*ids("x"), A, B)


@pytest.mark.parametrize("prompt", [(), (Text(""),), (Text(""), Generated("")), (Shift(3),)])
def test_a_prompt_without_tokens_is_refused(tokenizer: Tokenizer, prompt: Prompt) -> None:
    with pytest.raises(PromptError, match="empty"):
        encode(prompt, tokenizer)


def test_the_end_token_that_a_model_wrote_is_no_part_of_what_follows(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("x"), Generated("ab", (A, B, END)))
    assert found.tokens == (*ids("x"), A, B)


def test_tokens_beyond_a_trimmed_stop_string_are_left_out(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("x"), Generated("ab", (A, B, *ids("!!"))))
    assert found.tokens == (*ids("x"), A, B)


def test_a_token_cut_by_a_stop_string_is_encoded_anew(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("x"), Generated("!a", (*ids("!"), AB)))
    assert found.tokens == (*ids("x!"), A)


def test_text_that_comes_without_its_tokens_is_encoded(tokenizer: Tokenizer) -> None:
    assert enc(tokenizer, Text("x"), Generated("ab")).tokens == (*ids("x"), AB)


# -- gaps -------------------------------------------------------------------------------------


def test_a_shift_cuts_the_prompt_and_leaves_positions_out(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("xy"), Shift(7), Text("z"))
    assert found == Encoded(ids("z"), after=(Encoded(ids("xy")),), trunk_length=2, gap=7)
    assert (found.total, found.end) == (3, 2 + 7 + 1)


def test_text_does_not_merge_across_a_gap(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("xa"), Shift(1), Text("b"))
    assert (found.after[0].tokens, found.tokens) == ((*ids("x"), A), (B,))


def test_gaps_one_after_another_add_up(tokenizer: Tokenizer) -> None:
    assert enc(tokenizer, Text("x"), Shift(2), Shift(3), Text("y")).end == 1 + 5 + 1


def test_a_gap_before_everything_needs_no_cut(tokenizer: Tokenizer) -> None:
    assert enc(tokenizer, Shift(4), Text("x")) == Encoded(ids("x"), gap=4)


# -- branches ---------------------------------------------------------------------------------


def parallel(*branches: str) -> Parallel:
    return Parallel(tuple((Text(b),) for b in branches))


def test_branches_stand_side_by_side_after_their_trunk(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("xy"), parallel("pq", "r"), Text("z"))
    assert [e.tokens for e in found.after] == [ids("xypq"), ids("xyr")]
    assert (found.trunk_length, found.tokens) == (2, ids("z"))
    assert found.total == 2 + 2 + 1 + 1
    assert found.end == 2 + 2 + 1  # positions go on after the longest branch


def test_branches_do_not_merge_with_their_trunk_so_that_all_agree_in_it(
    tokenizer: Tokenizer,
) -> None:
    found = enc(tokenizer, Text("xa"), parallel("b", "y"), Text("z"))
    assert [e.tokens for e in found.after] == [(*ids("x"), A, B), (*ids("x"), A, *ids("y"))]


def test_branches_without_text_are_left_out(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("x"), parallel("", "y", ""), Text("z"))
    assert [e.tokens for e in found.after] == [ids("xy")]
    assert enc(tokenizer, Text("x"), parallel("", ""), Text("z")) == enc(
        tokenizer, Text("x"), Text("z")
    )


def test_when_nothing_follows_the_last_token_sees_all_branches(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("x"), parallel("pq", "rs"))
    assert [e.tokens for e in found.after] == [ids("xpq"), ids("xr")]
    assert found.tokens == ids("s")


def test_a_prompt_that_ends_in_nested_branches_says_what_to_do(tokenizer: Tokenizer) -> None:
    inner = Parallel(((Text("p"), parallel("q", "r")), (Text("s"), parallel("t", "u"))))
    with pytest.raises(PromptError, match="add text after"):
        enc(tokenizer, Text("x"), inner)
    assert enc(tokenizer, Text("x"), inner, Text("z")).total == 1 + 3 + 3 + 1


# -- namespaces -------------------------------------------------------------------------------


def test_plain_prompts_share_one_namespace(tokenizer: Tokenizer) -> None:
    assert enc(tokenizer, Text("x")).namespace == enc(tokenizer, Text("y")).namespace == PLAIN


def test_equal_bases_share_a_namespace_and_others_do_not(tokenizer: Tokenizer) -> None:
    prompts: list[tuple[object, ...]] = [
        (Text("x"),),
        (Text("x"), Shift(1)),
        (Text("x"), Shift(2)),
        (Text("y"), Shift(2)),
        (Shift(2),),
        (Text("x"), parallel("p", "q")),
        (Text("x"), parallel("q", "p")),
        (Text("xp"), parallel("p", "q")),
        (Text("x"), parallel("p", "q"), Shift(1)),
    ]
    spaces = [enc(tokenizer, *prompt, Text("zz")).namespace for prompt in prompts]
    assert len(set(spaces)) == len(prompts)
    again = [enc(tokenizer, *prompt, Text("other")).namespace for prompt in prompts]
    assert again == spaces


def test_sequences_come_after_those_they_are_built_on(tokenizer: Tokenizer) -> None:
    found = enc(tokenizer, Text("x"), parallel("p", "q"), Text("z"))
    s = found.sequence("name", Silent(), SamplingParams(max_new_tokens=1), seed=5)
    assert [(b.id, b.tokens, b.held) for b in s.after] == [
        ("name.0", list(ids("xp")), True),
        ("name.1", list(ids("xq")), True),
    ]
    assert (s.id, s.tokens, s.seed, s.trunk_length, s.held) == ("name", list(ids("z")), 5, 1, False)
