from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.compiler.reorder.judge import Order, objections

# These begin with a connective: they belong to the sentence before them and move with it.
JOINED = ["Then list names.", "Otherwise say no."]

HEAD = "Article: \ue000\n\n"
FREE = ["You are an editor.", "Use plain words.", "Never guess.", "Summarize the article."]
BOUND = [
    "Translate it into French.",
    "Shorten the text above.",
    "Answer these questions.",
    "Then list names.",
    "Use the same tone.",
    "What is missing?",
    "Readers are children.",
    "Do that twice.",
    "Say what she meant.",
    "Quote the landlord.",
    "Explain each to a child.",
    "Continue.",
    "Fasse den Artikel zusammen.",
    "Otherwise say no.",
    "Follow the rules below.",
    "Compare both.",
]


@pytest.mark.parametrize("sentence", FREE)
def test_instructions_that_stand_alone_may_come_first(sentence: str) -> None:
    assert objections(HEAD + sentence, sentence + "\n\n" + HEAD.strip()) == []


@pytest.mark.parametrize("sentence", BOUND)
def test_what_refers_back_or_is_no_instruction_may_not(sentence: str) -> None:
    assert objections(HEAD + sentence, sentence + "\n\n" + HEAD.strip()) != []


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(FREE + BOUND), min_size=1, max_size=6, unique=True),
    st.integers(0, 6),
    st.data(),
)
def test_whatever_is_accepted_keeps_every_bound_sentence_behind_what_it_may_mean(
    sentences: list[str], at: int, data: st.DataObject
) -> None:
    lines = [*sentences[:at], "Article: \ue000", *sentences[at:]]
    before = "\n".join(lines)
    order = data.draw(st.permutations(range(len(lines))))
    after = Order(before, False).passage.render(order)
    if not objections(before, after):
        place = {line: after.index(line) for line in lines}
        for i, line in enumerate(lines):
            if line in JOINED and i > 0 and lines[i - 1] in FREE:
                assert after[place[lines[i - 1]] :].startswith(f"{lines[i - 1]}\n{line}")
            elif line in BOUND:
                assert all(place[earlier] < place[line] for earlier in lines[:i])


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5), st.data())
def test_arguments_and_instructions_keep_their_order_among_themselves(
    count: int, data: st.DataObject
) -> None:
    lines = [line for i in range(count) for line in (f"Item: {chr(0xE000 + i)}", f"Use tag{i}.")]
    before = "\n".join(lines)
    after = Order(before, False).passage.render(data.draw(st.permutations(range(2 * count))))
    if not objections(before, after):
        for kind in (lines[::2], lines[1::2]):
            places = [after.index(line) for line in kind]
            assert places == sorted(places)


def test_the_article_needs_exactly_one_heading_that_names_it() -> None:
    named = "Article: \ue000\nSummarize the article."
    unnamed = "\ue000\nSummarize the article."
    doubled = "First article: \ue000\nSecond article: \ue001\nSummarize the article."
    assert objections(named, "Summarize the article.\nArticle: \ue000") == []
    assert objections(unnamed, "Summarize the article.\n\ue000") != []
    moved = "Summarize the article.\nFirst article: \ue000\nSecond article: \ue001"
    assert objections(doubled, moved) != []


def test_what_the_model_goes_on_from_stays_last() -> None:
    before = "Article: \ue000\nBe brief."
    after = "Be brief.\nArticle: \ue000"
    assert objections(before, after, continued=False) == []
    assert objections(before, after, continued=True) != []


@pytest.mark.parametrize("cue", ["Summary:", "Answer", "=>"])
def test_a_cue_stays_last_in_a_turn_as_well(cue: str) -> None:
    assert objections(f"Article: \ue000\n{cue}", f"{cue}\nArticle: \ue000") != []


def test_a_list_is_not_torn_from_its_announcement() -> None:
    before = "Text: \ue000\n\nCheck these points:\n- style\n- length\nNever guess."
    torn = "Check these points:\n- length\n\nText: \ue000\n- style\nNever guess."
    whole = "Check these points:\n- style\n- length\n\nText: \ue000\n\nNever guess."
    assert objections(before, torn) != []
    assert objections(before, Order(before, False).render([1, 0, 2])) == []
    assert Order(before, False).render([1, 0, 2]) == whole


def test_fields_of_a_record_stay_together() -> None:
    before = "Name: \ue000\nWard: cardiology\nAge: \ue001"
    assert objections(before, "Ward: cardiology\nName: \ue000\nAge: \ue001") != []


def test_objections_name_the_sentences_and_the_reason() -> None:
    (reason,) = objections(HEAD + "Translate it.", "Translate it.\n\nArticle: \ue000")
    assert "torn" in reason
    after = "Summarize the story.\n\nArticle: \ue000"
    (reason,) = objections(HEAD + "Summarize the story.", after)
    assert "'Summarize the story.'" in reason
    assert "'the story' may not be known yet" in reason


BEFORE = "Article: \ue000\n\nYou are an editor. Summarize the article in one sentence."


@pytest.mark.parametrize(
    "after",
    [
        "You are an editor.\n\nArticle: \ue000",
        "You are an author. Summarize the article in one sentence.\n\nArticle: \ue000",
        "You are an editor. Obey. Summarize the article in one sentence.\n\nArticle: \ue000",
        "You are an editor. Summarize the article in one sentence.\n\nArticle: \ue001",
        "You are an editor. Summarize the article in one sentence.\n\nArticle: \ue000 \ue000",
        "You are an editor. Summarize the article in one sentence. Article: \ue000",
        "",
    ],
    ids=["drops", "changes", "adds", "swaps", "doubles", "joins lines", "empties"],
)
def test_a_text_is_judged_word_for_word(after: str) -> None:
    assert objections(BEFORE, after) != []


def test_the_judge_accepts_the_same_words_in_a_right_order() -> None:
    after = "You are an editor. Summarize the article in one sentence.\n\nArticle: \ue000"
    assert objections(BEFORE, after) == []
