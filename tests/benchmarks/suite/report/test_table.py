"""The table says in a line for each workload what the document says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from sgl_mlx.benchmarks.suite.report.table import suite_table
from tests.benchmarks.suite.example import CRASH, LLAMA, MLX, document


def shown(found: Mapping[str, Any], width: int = 140) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(suite_table(found))
    return capture.get()


def line(found: Mapping[str, Any], name: str) -> list[str]:
    [cells] = [text.split() for text in shown(found).splitlines() if text.split()[:1] == [name]]
    return cells


def test_a_workload_is_a_line() -> None:
    assert line(document(repeats=1), "mmlu") == [
        *("mmlu", "16", "14.2", "41.3s", "2.91x", "97.1s", "6.84x"),
        *("86.2%", "99.6%", "130", "119k", "130"),
    ]


def test_the_caption_has_the_geometric_means() -> None:
    text = shown(document())
    assert f"geometric mean: 2.31x {LLAMA} (from 9 of 9), 5.41x {MLX} (from 8 of 9)" in text


def test_a_peer_without_a_ratio_has_the_number_of_the_reason() -> None:
    found = document("mmlu", "json_decode", crashed=True, repeats=1)
    assert line(found, "json_decode")[3:7] == ["-", "(2)", "-", "(1)"]
    words = " ".join(shown(found).split())
    assert f"(1) {LLAMA} on mmlu, json_decode: {' '.join(CRASH.split())}" in words
    assert f"(2) {MLX} on json_decode: mlx-lm has no grammar" in words


def test_work_that_differs_is_written_of_each_system_exactly() -> None:
    found = document("mmlu", repeats=1)
    entry = found["workloads"][0]
    entry["ratio"].pop(LLAMA)
    entry["not_compared"][LLAMA] = "different work"
    entry["runs"][1]["prompt_tokens"] -= 3
    text = shown(found)
    for cell in ("ours 118820", "llama.cpp 118817", "mlx-lm 118820"):
        assert cell in text
    assert "41.3s - (1)" in text
    assert text.count("130") == 2  # calls and output are those of all


def test_without_an_optimum_or_our_run_there_is_a_dash() -> None:
    assert line(document("multi_doc_qa"), "multi_doc_qa")[7:9] == ["50.0%", "–"]
    found = document("mmlu")
    entry = found["workloads"][0]
    entry |= {"ratio": {}, "not_compared": {LLAMA: "out of slots", MLX: "out of slots"}}
    entry["runs"] = entry["runs"][2:]
    entry["tokens"].pop("ours")
    assert line(found, "mmlu")[2] == "–"


def test_what_is_modelled_says_so() -> None:
    found = document("mmlu", "react")
    found["workloads"][0]["modelled"] = True
    text = shown(found)
    assert "mmlu (modelled)" in text
    assert "react (modelled)" not in text
    assert "geometric mean (modelled)" in text


def test_hostile_strings_stay_text() -> None:
    found = document("mmlu", "json_decode")
    found["workloads"][0]["name"] = "[red]x[/nonsense]"
    found["workloads"][1]["not_compared"][MLX] = "[link=file:///x]why\x1b[2J"
    text = shown(found)
    assert "[red]x[/nonsense]" in text
    assert "[link=file:///x]why\N{REPLACEMENT CHARACTER}[2J" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_on_a_narrow_terminal_nothing_is_left_out(width: int) -> None:
    text = shown(document(crashed=True), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_no_workload_is_a_table_too() -> None:
    assert "workload" in shown({"workloads": [], "geomean": {}})


def test_the_instruction_sets_of_both_sides_are_named() -> None:
    found = document("mmlu") | {"instruction_sets": {"ours": "AVX2 [AMX]", LLAMA: "AVX2"}}
    lines = [line.strip() for line in shown(found).splitlines()]
    assert {"ours uses AVX2 [AMX]", "llama.cpp uses AVX2"} <= {*lines}
