"""Ends of a prompt's parts: prefixes of tokens that other prompts with the same parts have too."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.core import Generated, Part, Text
from sgl_mlx.lang.transcript import merged
from sgl_mlx.runtime.request.encode import Encoded, encode
from tests.runtime.constraints.constrained_fixtures import engine, needs_model

pytestmark = needs_model

pieces = st.lists(
    st.sampled_from(["", "a", " b", "The day", " was long.", "\n\n", "é", "un", "believable "]),
    min_size=1,
    max_size=6,
)


def encoded(parts: list[Part], ends: bool = True) -> Encoded:
    return encode(merged(parts), engine().tokenizer, ends=ends)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=pieces, other=st.sampled_from(["x", " y", "\n", "."]), generated=st.booleans())
def test_a_prompt_that_goes_on_otherwise_has_the_same_tokens_before_an_end(
    texts: list[str], other: str, generated: bool
) -> None:
    parts: list[Part] = [Text("Begin"), *map(Text, texts)]
    if generated:
        parts.insert(2, Generated(" said"))
    found = encoded(parts)
    assert all(0 <= end <= len(found.tokens) for end in found.parts)
    assert found.tokens == encoded(parts, ends=False).tokens
    assert encoded(parts, ends=False).parts == ()
    for i in range(1, len(parts)):
        another = encoded([*parts[:i], Text(other)])
        shared = [end for end in another.parts if found.tokens[:end] == another.tokens[:end]]
        assert shared


def test_the_ends_of_words_that_do_not_merge_are_where_they_were_written() -> None:
    tokenizer = engine().tokenizer
    texts = ["The day", " was long", " and the road", " was dusty."]
    lengths = [len(tokenizer.encode("".join(texts[:i]))) for i in range(1, len(texts))]
    found = encoded([Text(text) for text in texts])
    assert set(lengths) <= set(found.parts)


def test_texts_that_differ_in_their_ends_alone_are_equal() -> None:
    assert Text("ab", (1,)) == Text("ab")
    assert hash(Text("ab", (1,))) == hash(Text("ab"))
    [joined] = merged([Text("a"), Text("bc"), Text(""), Text("d")])
    assert joined == Text("abcd")
    assert joined.ends == (1, 3)
    [again] = merged([joined, Text("e")])
    assert again.ends == (1, 3, 4)
