"""Counts of tokens without a model are those that a hand comes to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.benchmarks.modelled.llama_server_slots import Slots, rounds
from sgl_mlx.benchmarks.modelled.token_counts import (
    IMAGE_TOKENS,
    Counter,
    Counts,
    Work,
    count,
    vocabulary,
)
from sgl_mlx.benchmarks.suite.optimum import Asked
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.long_documents import CHARACTER, CHARACTER_GBNF, FIELDS
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from sgl_mlx.errors import BenchmarkError

BRANCHES = [
    {"shared": "one two three four", "own": own, "tokens": 3}
    for own in (" five six", " seven eight")
]


def counted(name: str, rows: list[Any], concurrency: int) -> Counts:
    return count(WORKLOADS[name], rows, concurrency, *vocabulary())


def generated(name: str, folder: Path, scale: float = 0.02) -> tuple[list[Any], Counts]:
    tokenizer, words = vocabulary()
    rows = list(WORKLOADS[name].rows(words, Size(scale, folder)))
    return rows, count(WORKLOADS[name], rows, WORKLOADS[name].concurrency, tokenizer, words)


def prompt(*tokens: int) -> Asked:
    return Asked(tokens, (99, 99))


def test_one_after_another_a_slot_holds_what_two_prompts_share() -> None:
    assert counted("overhead", BRANCHES, 1) == Counts(
        calls=2,
        prompt_tokens=12,
        output_tokens=6,
        ours=Work(prefilled=6 + 2, decoded=4, batch=1, context=7.5),
        slots=Work(prefilled=6 + 2, decoded=4, batch=1, context=7.5),
    )


def test_side_by_side_each_slot_computes_it() -> None:
    counts = counted("overhead", BRANCHES, 8)
    assert (counts.ours.prefilled, counts.slots.prefilled) == (8, 12)
    assert counts.ours.batch == counts.slots.batch == 2


def test_a_prompt_that_comes_again_costs_its_last_token() -> None:
    counts = counted("overhead", BRANCHES[:1] * 3, 1)
    assert counts.ours.prefilled == counts.slots.prefilled == 6 + 1 + 1


def test_a_chat_finds_its_own_answers() -> None:
    turns = [("User: hello\nAssistant:", 4), ("\nUser: and\nAssistant:", 2)]
    counts = counted("multi_turn_chat_short", [{"turns": turns}], 1)
    first, second = 6, 6 + 4 + 7
    assert counts.prompt_tokens == first + second
    # the last token of an answer has no keys and values before it is asked about
    assert counts.ours.prefilled == counts.slots.prefilled == first + 1 + 7


def test_choices_are_computed_and_nothing_is_decoded() -> None:
    row = {"examples": "one two", "question": " three", "endings": [" four", " five six"]}
    counts = counted("hellaswag", [row], 1)
    assert (counts.calls, counts.prompt_tokens, counts.output_tokens) == (2, 4 + 5, 0)
    assert counts.ours == Work(prefilled=3 + 1 + 2, decoded=0, batch=1)


def test_what_a_grammar_forces_is_computed_like_a_prompt() -> None:
    counts = counted("json_decode", [{"name": "aaaa"}], 1)
    chosen = sum(FIELDS.values())
    forced = counts.output_tokens - chosen
    assert counts.ours.decoded == chosen - 1
    assert counts.slots.decoded == counts.output_tokens - 1
    assert counts.ours.prefilled - forced == counts.slots.prefilled == counts.prompt_tokens


def test_a_record_is_one_that_the_grammar_allows() -> None:
    client = Counter(*vocabulary())
    text = client.complete("Fill in:", 256, grammar=CHARACTER_GBNF)
    assert re.fullmatch(CHARACTER, text)
    with pytest.raises(BenchmarkError, match="json_decode"):
        client.complete("Answer:", 4, grammar='root ::= "yes"')


def test_a_picture_is_encoded_once_by_us_and_whenever_its_slot_has_another(tmp_path: Path) -> None:
    row = {"lead": "USER: ", "asked": "\nWhat is this?\nASSISTANT:", "tokens": 2}
    rows = [{**row, "picture": name} for name in ("a.jpg", "b.jpg", "a.jpg", "a.jpg")]
    counts = counted("llava_bench", rows, 1)
    assert (counts.ours.encoded, counts.slots.encoded) == (2, 3)
    text = counts.prompt_tokens - 4 * IMAGE_TOKENS
    assert text % 4 == 0
    assert 2 * IMAGE_TOKENS < counts.ours.prefilled < 2 * (IMAGE_TOKENS + text // 4)


def test_a_slot_that_holds_a_tenth_of_a_prompt_is_preferred() -> None:
    slots = Slots(2)
    assert slots.cached([prompt(*range(20)), prompt(*range(50, 70))]) == [0, 0]
    assert slots.cached([prompt(*range(20), 80)]) == [20]
    # only its first token of ten is held, so the slot used longest ago takes it
    assert slots.cached([prompt(0, *range(30, 39))]) == [0]
    assert slots.cached([prompt(*range(20), 80)]) == [20]
    assert slots.cached([prompt(50, 51, 52)]) == [0]


def test_calls_at_a_time_are_the_next_of_each_program_under_way() -> None:
    programs = ["ab", "c", "", "de"]
    assert list(rounds([list(x) for x in programs], 2)) == [["a", "c"], ["b", "d"], ["e"]]
    assert list(rounds([], 2)) == []


@pytest.mark.parametrize("name", WORKLOADS)
def test_nobody_computes_less_than_the_optimum(name: str, tmp_path: Path) -> None:
    rows, counts = generated(name, tmp_path)
    forced = counts.slots.decoded - counts.ours.decoded
    assert 0 < counts.ours.prefilled - forced <= counts.slots.prefilled <= counts.prompt_tokens
    assert counts.calls >= len(rows)
    assert generated(name, tmp_path)[1] == counts  # whatever the threads do
