from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.compiler.reorder.sentences import split

PIECES = st.lists(
    st.sampled_from(
        ["Be brief. ", "e.g. ", "- item\n", "1. ", "```\na. B\n```", '"', "(", ")", "\n\n",
         "\ue000", " Dr. X", "<a>", "</a>", "?", "Why? ", "word ", "Input:\n"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


def _texts(text: str) -> list[str]:
    return [sentence.text for sentence in split(text).sentences]


@given(PIECES | st.text(max_size=60))
def test_the_pieces_in_order_are_the_text(text: str) -> None:
    passage = split(text)
    assert passage.render(range(len(passage.sentences))) == text


@given(PIECES, st.data())
def test_another_order_has_the_same_sentences_with_white_space_between(
    text: str, data: st.DataObject
) -> None:
    passage = split(text)
    order = data.draw(st.permutations(range(len(passage.sentences))))
    rest = passage.render(order)
    for i in order:
        assert rest.lstrip().startswith(passage.sentences[i].text)
        rest = rest.lstrip()[len(passage.sentences[i].text) :]
        assert rest == "" or rest[0].isspace() or i == order[-1]
    assert not rest.strip()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Use units, e.g. Grams. Ask Dr. Who.", ["Use units, e.g. Grams.", "Ask Dr. Who."]),
        ("Text: \ue000. Be brief.", ["Text: \ue000.", "Be brief."]),
        ("Text: \ue000 Be brief.", ["Text: \ue000 Be brief."]),
        ("Steps:\n1. Read.\n2. Write.", ["Steps:", "1. Read.", "2. Write."]),
        ("A line that is\nwrapped here. Next.", ["A line that is\nwrapped here.", "Next."]),
        ('He said "Go. Now." Stop.', ['He said "Go. Now."', "Stop."]),
        ("A (see B. Or C.) end. Next.", ["A (see B. Or C.) end.", "Next."]),
        ("```\nA. B.\n```\nGo.", ["```\nA. B.\n```", "Go."]),
        ("<x>\nA. B.\n</x>\nGo.", ["<x>\nA. B.\n</x>", "Go."]),
        ("Pay 3.50 euros. Go.", ["Pay 3.50 euros.", "Go."]),
        ("", []),
    ],
)
def test_sentences_lists_and_enclosed_passages_are_told_apart(
    text: str, sentences: list[str]
) -> None:
    assert _texts(text) == sentences


@pytest.mark.parametrize("text", ["Open ``` fence. Go. On.", "A <tag> alone. Go. On."])
def test_a_text_whose_build_is_unclear_is_one_sentence(text: str) -> None:
    assert _texts(text) == [text]
