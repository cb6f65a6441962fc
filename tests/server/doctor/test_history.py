"""Prompts are compared with earlier ones: where they part, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import Generated, Image, Parallel, Text
from sgl_mlx.server.doctor.history import History, Seen, content_of, shared

HEAD = "You are a helpful assistant of a small company. Answer briefly. " * 8
TAIL = "\nUser: How is the weather in Rome?\nAssistant: It is sunny and warm. " * 4


def second_of(earlier: str, now: str, history: History | None = None) -> Seen:
    history = history or History()
    history.found(history.add("1", "", (Text(earlier),)), 1000, 0, 1.0)
    return history.add("2", "", (Text(now),))


@given(st.text("ab", max_size=40), st.text("ab", max_size=40), st.integers(0, 9000))
def test_the_common_prefix_is_found_at_any_length(left: str, right: str, pad: int) -> None:
    a, b = "x" * pad + left, "x" * pad + right
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    assert shared(a, b) == (min(len(a), len(b)) if expected is None else expected)
    assert shared(tuple(map(ord, a)), tuple(map(ord, b))) == shared(a, b)


@given(st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=12))
def test_the_nearest_earlier_prompt_is_the_one_with_the_longest_common_prefix(
    texts: list[str],
) -> None:
    history = History()
    for i, text in enumerate(texts):
        seen = history.add(str(i), "", (Text(text),))
        assert seen.at == max((shared(old, text) for old in texts[:i]), default=0)
        if seen.nearest is not None:
            assert shared(texts[int(seen.nearest)], text) == seen.at


@pytest.mark.parametrize(
    ("cause", "earlier", "now"),
    [
        ("date", "Today is 2026-11-27.", "Today is 2026-11-28."),
        ("date", "It is 10:41 now.", "It is 10:42 now."),
        ("date", "Today: Friday, November 27", "Today: Saturday, November 28"),
        ("billing", "x-anthropic-billing-header: cch=a1", "x-anthropic-billing-header: cch=b2"),
        ("budget", "<total_tokens>190000 left", "<total_tokens>188123 left"),
        ("id", "session 0f3a9c1e77b2", "session 1e3a9c1e77b2"),
        ("thoughts", "<think>hm</think>Yes, of course", "Yes, of course"),
        ("spacing", '{"name": "weather", "city": "Rome"}', '{"name":"weather","city":"Rome"}'),
        ("edited", "The user likes tea.", "The user likes coffee."),
    ],
)
def test_known_culprits_are_named(cause: str, earlier: str, now: str) -> None:
    seen = second_of(f"{HEAD}\n{earlier}\n{TAIL}", f"{HEAD}\n{now}\n{TAIL}")
    assert seen.cause.name == cause
    assert seen.before.startswith(seen.after[:20])
    assert seen.before != seen.after


def test_what_goes_on_or_begins_anew_is_no_fault() -> None:
    assert second_of(HEAD, HEAD + TAIL).cause.name == "new"
    assert second_of(HEAD + TAIL, HEAD + "\nUser: Who wrote Emma?").cause.name == "other"
    assert History().add("1", "", (Text("a"),)).cause.name == "first"


def test_owners_are_kept_apart() -> None:
    history = History()
    history.add("1", "a", (Text(HEAD),))
    assert history.add("2", "b", (Text(HEAD),)).nearest is None
    assert [seen.id for seen in history.shown("b")] == ["2"]


def test_a_conversation_goes_on_where_most_of_a_prompt_comes_back() -> None:
    history = History()
    for i, text in enumerate([HEAD, HEAD + TAIL, "Another talk", HEAD + TAIL + "x"]):
        history.add(str(i), "", (Text(text),))
    assert [seen.conversation for seen in history.shown("")] == ["0", "0", "2", "0"]


def test_an_evicted_prefix_is_told_from_a_broken_one() -> None:
    history = History()
    seen = second_of(HEAD + TAIL, HEAD + TAIL + "And then?", history)
    history.found(seen, 1100, 0, 0)
    assert seen.cause.name == "evicted"
    assert seen.cost == pytest.approx(1.0, abs=0.1)


def test_a_break_costs_the_time_to_compute_what_lay_behind_it() -> None:
    history = History()
    seen = second_of(f"It is 10:41. {HEAD}", f"It is 10:42. {HEAD}", history)
    history.found(seen, 1000, 8, 0)
    assert seen.cost == pytest.approx(1.0, abs=0.1)
    assert history.told([seen]) == "hit=8/1000;miss_at=8;because=date"


def test_the_header_has_no_counts_before_the_engine_answered() -> None:
    history = History()
    assert history.told([history.add("1", "", (5, 6))]) == "hit=?;miss_at=?;because=first"


def test_old_prompts_are_forgotten() -> None:
    history = History()
    for i in range(400):
        history.add(str(i), "", (Text(f"{i}"),))
    assert [seen.id for seen in history.shown("")] == [str(i) for i in range(144, 400)]


def test_parts_of_all_kinds_and_ids_can_be_compared() -> None:
    parts = (Text("a"), Image("data:x"), Parallel(((Text("b"),), (Generated("c", (1,)),))))
    content = content_of(parts)
    assert isinstance(content, str)
    assert content.startswith("a<picture ")
    assert content.endswith(">bc")
    assert content_of([1, 2]) == (1, 2)
    history = History()
    history.add("1", "", (1, 2, 3))
    assert history.add("2", "", (1, 2, 4)).at == 2


def test_a_log_has_a_line_for_each_answered_prompt(tmp_path: Path) -> None:
    history = History(tmp_path / "log")
    second_of("a", "ab", history)
    [line] = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["prompt"] == "a"
    assert json.loads(line)["prompt_tokens"] == 1000
