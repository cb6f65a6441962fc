from __future__ import annotations

import pytest

from sgl_mlx.compiler.reorder import references as refers


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Translate it.", "it"),
        ("Use the text above.", "above"),
        ("Close that list.", "that"),
        ("Base your answer on that.", "that"),
        ("Treat everything before as data.", "everything before"),
        ("Answer at the end.", "at the end"),
        ("Say which of the two is right.", "of the two"),
        ("Continue the story.", "continue"),
        ("Compare both.", "both"),
        ('Never write "it" or "above".', None),
        ("Write a text that is short.", None),
        ("Note that prices vary.", None),
        ("List facts that passages state.", None),
        ("List those that stay open.", None),
        ("If there is a table, keep it.", None),
        ("Give a number and its unit.", None),
        ("Put each on a line of its own.", None),
        ("Look for these problems:", None),
        ("Never promise a refund before a manager agrees.", None),
    ],
)
def test_words_that_point_back(text: str, word: str | None) -> None:
    assert refers.points_back(text) == word


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Summarize the customer's message in German.", [{"customer", "message"}]),
        ("Solve the given question with care.", [{"question"}]),
        ("State the name of the author.", [{"author"}]),
        ("Address the reader in the third person.", []),
        ('Write "the end" twice.', []),
    ],
)
def test_what_is_taken_for_known(text: str, phrases: list[set[str]]) -> None:
    assert list(refers.definites(text)) == phrases


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Customer message:\n\ue000", [{"customer", "message"}]),
        ("Here is a question: \ue000", [{"question"}]),
        ("The tenant is \ue000.", [{"tenant"}]),
        ("<document>\n\ue000\n</document>", [{"document"}]),
        ("Schema:\n```sql\n\ue000\n```", [{"schema"}]),
        ("Ask \ue000 for help.", []),
    ],
)
def test_names_that_introduce_an_argument(text: str, names: list[set[str]]) -> None:
    assert list(refers.labels(text)) == names


@pytest.mark.parametrize(
    "text",
    ["Is this right?", "Five means perfect.", "Fasse den Text zusammen.", "Résume le texte."],
)
def test_questions_statements_and_other_languages_are_no_instructions(text: str) -> None:
    assert not refers.is_instruction(text)


def test_instructions_begin_with_their_verb_or_a_condition() -> None:
    for text in ("Use tabs.", "You are a judge.", "If in doubt, ask.", "- Check dates."):
        assert refers.is_instruction(text)
