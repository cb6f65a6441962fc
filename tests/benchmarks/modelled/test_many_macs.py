"""Modelled steps over several Macs follow from the model's shape and the links' figures."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.benchmarks.modelled.apple import Machine
from sgl_mlx.benchmarks.modelled.many_macs import (
    LINKS,
    Link,
    assumptions,
    pipeline_step,
    steps,
    tensor_step,
)
from sgl_mlx.cli.commands import main

MACHINE = Machine.find("m2-ultra", "llama-2-7b", "f16")
LAYERS, HIDDEN = 32, 4096
links = st.sampled_from(LINKS)
counts = st.integers(2, 8)
sizes = st.floats(1, 1e9)


def test_a_token_of_a_7b_model_by_hand() -> None:
    link = Link("by hand", latency=1e-4, bandwidth=1e9, mesh=True, source="")
    step = tensor_step(MACHINE, 2, link, "decode", tokens=1, alone=0.02)
    assert step.sent == 2 * LAYERS * HIDDEN * 2 == 2**19
    assert step.link_seconds == pytest.approx(64 * (1e-4 + 8192 / 1e9))
    assert step.seconds == pytest.approx(0.01 + step.link_seconds)
    assert step.ratio == pytest.approx(0.02 / step.seconds)
    step = pipeline_step(MACHINE, 2, link, "decode", tokens=1, alone=0.02)
    assert step.sent == 8192
    assert step.seconds == pytest.approx(0.02 + 1e-4 + 8192 / 1e9)


def test_a_ring_of_two_sends_as_much_as_a_mesh_in_twice_the_messages() -> None:
    mesh = Link("mesh", 1.0, 10.0, True, "")
    ring = Link("ring", 1.0, 10.0, False, "")
    assert ring.sent(100, 2) == mesh.sent(100, 2) == 100
    assert mesh.all_reduce(100, 2) == 1 + 10
    assert ring.all_reduce(100, 2) == 2 * (1 + 5)
    assert ring.sent(120, 4) == 2 * 3 * 120 / 4


@given(links, counts, sizes)
def test_no_link_is_faster_than_its_figures(link: Link, macs: int, size: float) -> None:
    assert link.all_reduce(size, macs) >= link.latency + size / link.bandwidth
    assert link.all_reduce(2 * size, macs) > link.all_reduce(size, macs)


@given(links, counts, st.integers(1, 4096), st.floats(1e-4, 10))
def test_no_split_beats_its_share_and_no_pipeline_one_mac(
    link: Link, macs: int, tokens: int, alone: float
) -> None:
    shared = tensor_step(MACHINE, macs, link, "decode", tokens, alone)
    piped = pipeline_step(MACHINE, macs, link, "decode", tokens, alone)
    assert shared.ratio < macs
    assert piped.ratio < 1
    assert piped.sent < shared.sent


def test_rdma_makes_tensor_parallelism_pay_and_tcp_does_not() -> None:
    rows = {(s.way, s.link, s.kind, s.tokens): s for s in steps(MACHINE, 2)}
    tcp, rdma, best = (rows["tensor", link.name, "decode", 1].ratio for link in LINKS)
    assert tcp < 1 < rdma < best < 2


def test_the_command_says_modelled_in_every_line() -> None:
    shown = CliRunner().invoke(main, ["bench", "project", "--macs", "2"])
    *lines, last = shown.output.splitlines()
    assert all(line.startswith("modelled ") for line in lines), shown.output
    document = json.loads(last)
    assert document["modelled"]
    assert document["macs"] == 2
    assert all(row["modelled"] for row in document["rows"])
    assert {row["way"] for row in document["rows"]} == {"tensor", "pipeline"}
    for assumed in assumptions(2):
        assert f"modelled assuming {assumed}" in lines
    assert all(any(link.source in line for line in lines) for link in LINKS)


def test_one_mac_is_refused() -> None:
    shown = CliRunner().invoke(main, ["bench", "project", "--macs", "1"])
    assert shown.exit_code == 2
    assert "x>=2" in shown.output
