"""Modelled times follow from published speeds; everything said is marked as modelled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sgl_mlx.benchmarks.modelled.apple import MODELS, PUBLISHED, Machine
from sgl_mlx.benchmarks.modelled.projection import assumptions, fitting, project
from sgl_mlx.benchmarks.modelled.token_counts import Work
from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS, find
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from sgl_mlx.cli.commands import main
from sgl_mlx.errors import BenchmarkError

SMALL = ["bench", "project", "--scale", "0.05", "--workload", "gsm8k", "--workload", "json_decode"]


@pytest.mark.parametrize(("chip", "quant"), PUBLISHED)
def test_the_published_speeds_come_out_again(chip: str, quant: str) -> None:
    machine = Machine.find(chip, "llama-2-7b", quant)
    speeds = PUBLISHED[chip, quant]
    prompt = machine.seconds(Work(prefilled=512, decoded=0, batch=1))
    assert prompt == pytest.approx(512 / speeds.prefill)
    decode = machine.seconds(Work(prefilled=0, decoded=128, batch=1))
    assert decode == pytest.approx(128 / speeds.decode)
    assert 0.3 < machine.prefill_share < 1
    assert 0.3 < machine.decode_share < 1


def test_a_token_of_a_7b_model_keeps_half_a_megabyte() -> None:
    assert MODELS["llama-2-7b"].kv_bytes == 1 << 19


def test_a_batch_reads_the_weights_once_until_it_computes_for_longer() -> None:
    machine = Machine.find("m2-ultra", "llama-2-7b", "f16")
    alone, eight = (machine.seconds(Work(0, 1000, rows)) for rows in (1, 8))
    assert eight == pytest.approx(alone / 8)
    assert machine.seconds(Work(0, 1000, 512)) == pytest.approx(1000 / machine.prefill_speed)
    assert machine.seconds(Work(0, 1000, 8, context=1000)) > eight


def test_a_picture_costs_a_language_model_nothing_and_a_llava_its_encoding() -> None:
    blind, seeing = (Machine.find("m2-ultra", model, "f16") for model in MODELS)
    assert blind.seconds(Work(0, 0, 1, encoded=3)) == 0
    assert seeing.seconds(Work(0, 0, 1, encoded=3)) == 3 * seeing.encode_seconds > 0
    assert any("encode" in line for line in assumptions(seeing, None))


def test_more_bandwidth_or_arithmetic_is_never_slower(tmp_path: Path) -> None:
    machine = Machine.find("m1-max", "llama-2-7b", "q4_0")
    wider = replace(machine, chip=replace(machine.chip, bandwidth=2 * machine.chip.bandwidth))
    faster = replace(machine, chip=replace(machine.chip, tflops=2 * machine.chip.tflops))
    workloads = fitting(machine.model, find(()))
    for row in project(machine, workloads, Size(0.02, tmp_path)):
        for work in (row.counts.ours, row.counts.slots):
            assert wider.seconds(work) <= machine.seconds(work)
            assert faster.seconds(work) <= machine.seconds(work)
    alone = Work(0, 100, batch=1, context=500)
    assert wider.seconds(alone) == pytest.approx(machine.seconds(alone) / 2)


def test_a_model_without_eyes_has_no_workloads_with_pictures() -> None:
    all_of_them = list(WORKLOADS.values())
    assert [w.name for w in fitting(MODELS["llava-1.5-7b"], all_of_them)] == ["llava_bench"]
    assert len(fitting(MODELS["llama-2-7b"], all_of_them)) == len(all_of_them) - 1


def test_every_line_says_modelled_and_assumptions_are_listed() -> None:
    shown = CliRunner().invoke(main, [*SMALL, "--concurrency", "4"])
    *lines, last = shown.output.splitlines()
    assert all(line.startswith("modelled ") for line in lines), shown.output
    document = json.loads(last)
    assert document["modelled"]
    assert [row["name"] for row in document["rows"]] == ["gsm8k", "json_decode"]
    assert all(row["modelled"] for row in document["rows"])
    assert all(row["ours"]["batch"] == 4 for row in document["rows"])
    for assumed in document["assumptions"]:
        assert f"modelled assuming {assumed}" in lines


def test_only_the_document_with_json() -> None:
    shown = CliRunner().invoke(main, [*SMALL, "--json", "--quant", "q4_0"])
    document = json.loads(shown.output)
    assert document["quant"] == document["rows"][0]["quant"] == "q4_0"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--chip", "m9"], "no chip 'm9' is known; there are m1, m1-max, m2-ultra"),
        (["--model", "gpt"], "llama-2-7b, llava-1.5-7b"),
        (["--quant", "q2"], "f16, q4_0"),
        (["--chip", "m1"], "no speed is published for f16 on m1; there is q4_0"),
        (["--model", "llava-1.5-7b"], "llava-1.5-7b runs none of gsm8k, json_decode"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(given: list[str], named: str) -> None:
    shown = CliRunner().invoke(main, [*SMALL, *given])
    assert shown.exit_code
    assert named in shown.output


def test_an_unknown_chip_is_an_error_of_ours() -> None:
    with pytest.raises(BenchmarkError, match="m4-max"):
        Machine.find("m9", "llama-2-7b", "f16")
