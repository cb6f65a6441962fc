"""The plot is plain SVG that shows every ratio of the document and nothing else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_mlx.benchmarks.suite.report.svg import write_svg
from tests.benchmarks.suite.example import LLAMA, MLX, document

SVG = "{http://www.w3.org/2000/svg}"
PLAIN = {"svg", "title", "style", "rect", "line", "text"}


def drawn(found: Mapping[str, Any], folder: Path) -> ET.Element:
    write_svg(found, folder / "plot.svg")
    return ET.fromstring((folder / "plot.svg").read_text("utf-8"))


def texts(root: ET.Element) -> list[str]:
    return [" ".join((e.text or "").split()) for e in root.iter(f"{SVG}text")]


def strips(root: ET.Element) -> dict[str, ET.Element]:
    """The nested pictures by their labels."""
    return {svg.attrib["aria-label"]: svg for svg in root.iter(f"{SVG}svg") if "y" in svg.attrib
            and "aria-label" in svg.attrib}  # fmt: skip


def test_every_workload_has_a_bar_for_each_ratio(tmp_path: Path) -> None:
    found = document()
    shown = strips(drawn(found, tmp_path))
    assert [*shown] == ["geometric mean", *(entry["name"] for entry in found["workloads"])]
    for entry in found["workloads"]:
        strip = shown[entry["name"]]
        assert len(strip.findall(f"{SVG}rect")) == len(entry["ratio"])
        for peer in entry["not_compared"]:
            assert f"{peer}: not compared" in texts(strip)
    assert "2.91x" in texts(shown["mmlu"])


def test_the_legend_has_the_geometric_mean_of_each_peer(tmp_path: Path) -> None:
    shown = texts(drawn(document(), tmp_path))
    assert f"{LLAMA}: geometric mean 2.31x, 9 of 9" in shown
    assert f"{MLX}: geometric mean 5.41x, 8 of 9" in shown


def test_machine_and_instruction_sets_of_both_sides_stand_below(tmp_path: Path) -> None:
    found = document() | {"instruction_sets": {"ours": "AVX2 AMX_BF16", LLAMA: "AVX2"}}
    assert texts(drawn(found, tmp_path))[-3:] == [
        "Intel(R) Xeon(R) Processor @ 2.70GHz, 2 cores, Linux x86_64",
        "ours uses AVX2 AMX_BF16",
        "llama.cpp uses AVX2",
    ]


def test_it_needs_nothing_else_and_follows_light_and_dark(tmp_path: Path) -> None:
    root = drawn(document(), tmp_path)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= PLAIN
    source = (tmp_path / "plot.svg").read_text("utf-8")
    assert re.findall(r"href|url\(|@import|\bon\w+=", source) == []
    assert source.count("http") == 1  # the namespace
    assert "prefers-color-scheme: dark" in source


def test_everything_lies_inside_and_nothing_overlaps(tmp_path: Path) -> None:
    root = drawn(document(), tmp_path)
    bottom = 0.0
    for strip in strips(root).values():
        assert float(strip.attrib["y"]) >= bottom
        bottom = float(strip.attrib["y"]) + float(strip.attrib["height"])
    heights = [float(e.attrib["y"]) for e in root.findall(f"{SVG}text")]
    assert max(*heights, bottom) < float(root.attrib["height"])


SHARED_FOLDER = [HealthCheck.function_scoped_fixture]


@settings(max_examples=40, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(name=st.text(min_size=1), ratio=st.floats(0, 1e6))
def test_any_name_and_ratio_is_well_formed(tmp_path: Path, name: str, ratio: float) -> None:
    found = document("mmlu")
    found["workloads"][0] |= {"name": name, "ratio": {LLAMA: ratio, MLX: 1.0}}
    assert len(strips(drawn(found, tmp_path))) in (1, 2)  # 1 if the name is that of the mean


@pytest.mark.parametrize("empty", [{"workloads": [], "geomean": {}}])
def test_no_workload_is_a_plot_too(tmp_path: Path, empty: dict[str, Any]) -> None:
    assert texts(drawn(empty, tmp_path))[0] == "Speed against each peer"
