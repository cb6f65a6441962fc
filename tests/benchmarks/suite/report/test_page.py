"""The page says what the document says, needs nothing else, and looks right in a browser."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgl_mlx.benchmarks.suite.report.page import write_page
from tests.benchmarks.suite.example import CRASH, LLAMA, MLX, OURS, SHAPES, document
from tests.benchmarks.suite.report.browser import DARK, LIGHT, console, dom, needs_chromium, picture

HOSTILE = """</td></svg><script>alert("x")</script><img src=x onerror='alert(1)'>&amp;{{ 7*7 }}"""

PHONE = 400
"""Pixels across."""


class Reader(HTMLParser):
    """All tags with their attributes, the text, and each table's rows as texts of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, *starts: str) -> list[str]:
        """The cells of the first row whose first cells begin so."""
        for row in self.rows:
            cells = [" ".join(cell.split()) for cell in row]
            if all(cell.startswith(start) for cell, start in zip(cells, starts, strict=False)):
                return cells
        raise AssertionError(f"no row {starts}")


def written(found: Mapping[str, Any], folder: Path) -> Path:
    page = folder / "page.html"
    write_page(found, page)
    return page


def read(found: Mapping[str, Any], folder: Path) -> Reader:
    return Reader(written(found, folder).read_text("utf-8"))


def test_the_headline_has_the_geometric_mean_of_each_peer(tmp_path: Path) -> None:
    text = read(document(), tmp_path).text
    assert f"2.31x the speed of {LLAMA} geometric mean of 9 of 9 workloads" in text
    assert f"5.41x the speed of {MLX} geometric mean of 8 of 9 workloads" in text


def test_each_system_has_a_row_with_its_times_and_work(tmp_path: Path) -> None:
    page = read(document(repeats=1), tmp_path)
    assert page.row("mmlu", OURS)[2:] == [
        *("", "14.2", "1.83", "4.26", "8.80", "0.156", "0.611", "130", "118,820", "130")
    ]
    assert page.row(LLAMA, "2.91x") == [
        *(LLAMA, "2.91x", "41.3", "0.629", "12.4", "25.6", "0.455", "1.78"),
        *("130", "118,820", "130"),
    ]


def test_several_runs_are_their_median_and_range(tmp_path: Path) -> None:
    found = document("mmlu", repeats=3)
    for run, seconds in zip(found["workloads"][0]["runs"][:3], (10.0, 14.0, 11.0), strict=True):
        run["seconds"] = seconds
    assert read(found, tmp_path).row("mmlu", OURS)[3] == "11.0 ±18%"


def test_our_engines_counts_are_set_against_the_optimum(tmp_path: Path) -> None:
    row = read(document("mmlu", repeats=1), tmp_path).row("mmlu", OURS, "118,820")
    hit, best = 1 - 16_341 / 118_820, 1 - 15_930 / 118_820
    assert row[3:7] == ["15,930", "16,341", f"{hit:.1%}", f"{hit / best:.1%}"]
    assert row[-1] == "0.044 0.31%"


def test_an_ablation_is_a_peer_that_counts_too(tmp_path: Path) -> None:
    found = document("mmlu", repeats=1)
    entry = found["workloads"][0]
    entry["runs"].append(entry["runs"][0] | {"system": "no-cache", "computed_tokens": 118_820})
    entry["tokens"]["no-cache"] = entry["tokens"][OURS]
    entry["ratio"]["no-cache"] = 1.8
    page = read(found, tmp_path)
    assert page.row("no-cache", "118,820")[2:6] == ["15,930", "118,820", "0.0%", "0.0%"]
    assert page.row("no-cache", "118,820")[10:12] == ["356,460", "512"]
    assert page.row("no-cache", "1.80x")
    assert "read from the pool" not in read(document("mmlu"), tmp_path).text


def test_without_an_optimum_there_is_a_dash(tmp_path: Path) -> None:
    row = read(document("multi_doc_qa"), tmp_path).row("multi_doc_qa", OURS, "3,470")
    assert (row[3], row[6]) == ("–", "–")


def test_a_peer_that_failed_shows_why(tmp_path: Path) -> None:
    page = read(document("mmlu", "gsm8k", crashed=True), tmp_path)
    assert f"not compared [1]: {CRASH.splitlines()[0]}" in page.row(LLAMA, "not")[1]
    assert f"[1] {LLAMA} on mmlu, gsm8k: {' '.join(CRASH.split())}" in page.text
    assert f"– the speed of {LLAMA}" in page.text


def test_a_peer_that_did_other_work_keeps_its_row_and_shows_why(tmp_path: Path) -> None:
    found = document("mmlu", repeats=1)
    found["workloads"][0]["ratio"].pop(LLAMA)
    reason = "different work: 130 calls here, 128 there"
    found["workloads"][0]["not_compared"][LLAMA] = reason
    page = read(found, tmp_path)
    assert page.row(LLAMA, "– [1]")[2] == "41.3"
    assert page.row(LLAMA, "not") == [LLAMA, f"not compared [1]: {reason}"]


def test_when_our_engine_failed_the_peers_rows_stand(tmp_path: Path) -> None:
    found = document("mmlu", "gsm8k", repeats=1)
    first = found["workloads"][0]
    first |= {"ratio": {}, "not_compared": {LLAMA: "out of slots", MLX: "out of slots"}}
    first["tokens"].pop(OURS)
    first["runs"] = first["runs"][1:]
    page = read(found, tmp_path)
    assert page.row("mmlu", LLAMA)[2:4] == ["– [1]", "41.3"]
    assert page.row("gsm8k", OURS)[3] == "11.9"


def test_a_null_latency_is_a_dash(tmp_path: Path) -> None:
    row = read(document("mmlu", latencies=False), tmp_path).row("mmlu", OURS)
    assert row[5:9] == ["–"] * 4


def test_of_one_workload_the_page_is_whole(tmp_path: Path) -> None:
    text = read(document("react"), tmp_path).text
    assert "1 workload on our engine" in text
    assert not [name for name, *_ in SHAPES if name != "react" and name in text]


def test_without_a_peer_or_without_a_workload_there_is_a_page(tmp_path: Path) -> None:
    alone = document("mmlu")
    alone["workloads"][0] |= {"ratio": {}, "not_compared": {}, "tokens": {OURS: {}}}
    alone["workloads"][0]["runs"] = alone["workloads"][0]["runs"][:2]
    assert (
        "1 workload on our engine; compared where" in read(alone | {"geomean": {}}, tmp_path).text
    )
    assert "0 workloads" in read({"workloads": [], "geomean": {}}, tmp_path).text


def test_machine_versions_commit_and_command_are_there(tmp_path: Path) -> None:
    found = document("mmlu")
    text = read(found, tmp_path).text
    for fact in ("Linux x86_64", "15.6 GB", "b6451", "0.32.1", found["commit"], found["command"]):
        assert fact in text


@pytest.mark.parametrize("level", ["document", "workload", "run"])
def test_what_is_modelled_says_so_and_nothing_else_does(level: str, tmp_path: Path) -> None:
    found = document("mmlu", "react", repeats=1)
    first = found["workloads"][0]
    {"document": found, "workload": first, "run": first["runs"][1]}[level]["modelled"] = True
    page = read(found, tmp_path)
    assert page.row(LLAMA + " modelled", "2.91x")
    assert page.row("mmlu", OURS)[1] == (OURS if level == "run" else f"{OURS} modelled")
    assert page.row("react", OURS)[1] == (f"{OURS} modelled" if level == "document" else OURS)
    assert f"the speed of {LLAMA} modelled" in page.text


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    found = document("mmlu", "json_decode")
    second = found["workloads"][1]
    second |= {"name": HOSTILE, "about": HOSTILE, "not_compared": {MLX: HOSTILE + "\x00\x1b[2J"}}
    found |= {"command": HOSTILE, "commit": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    for run in second["runs"][2:]:
        run["system"] = HOSTILE
    text = written(found, tmp_path).read_text("utf-8")
    tags = {tag for tag, _ in Reader(text).tags}
    assert tags.isdisjoint({"script", "img"})
    assert "{{ 7*7 }}" in text
    assert html.escape(HOSTILE, quote=False).split("(")[0].split('"')[0] in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_a_command_that_is_no_text_is_written(tmp_path: Path) -> None:
    found = document("mmlu") | {"command": "sgl-mlx bench suite --html caf\udce9.html"}
    assert "--html caf?.html" in read(found, tmp_path).text


def test_the_page_needs_no_script_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = written(document(crashed=True), tmp_path).read_text("utf-8")
    for tag, attributes in Reader(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", text)


def test_bars_start_at_one_and_go_the_way_of_the_ratio(tmp_path: Path) -> None:
    bars = [a for tag, a in read(document("multi_doc_qa"), tmp_path).tags if tag == "rect"]
    mean_llama, mean_mlx, slower, faster = (
        (float((bar["x"] or "").rstrip("%")), float((bar["width"] or "").rstrip("%")))
        for bar in bars
        if (bar.get("class") or "").startswith("c")
    )
    one = faster[0]
    assert mean_llama[0] == mean_mlx[0] == one
    assert slower[0] + slower[1] == pytest.approx(one, abs=0.01)
    assert faster[0] + faster[1] < 100


@needs_chromium
def test_a_browser_shows_every_workload_and_has_nothing_to_complain_of(tmp_path: Path) -> None:
    page = written(document(), tmp_path)
    shown = Reader(dom(page))
    for name, *_ in SHAPES:
        assert [a for tag, a in shown.tags if tag == "svg" and name in (a.get("aria-label") or "")]
        assert shown.row(name, OURS)
    assert console(page) == []


@needs_chromium
def test_a_browser_would_complain_of_a_script(tmp_path: Path) -> None:
    page = written(document("mmlu"), tmp_path)
    text = page.read_text("utf-8")
    page.write_text(text.replace("</body>", "<script>throw 1</script></body>"), "utf-8")
    assert len(console(page)) == 1


@needs_chromium
@pytest.mark.parametrize("width", [1200, PHONE])
def test_the_picture_is_drawn_in_light_and_dark(width: int, tmp_path: Path) -> None:
    page = written(document(), tmp_path)
    corners = []
    for scheme in (LIGHT, DARK):
        with Image.open(picture(page, width, 900, scheme)) as opened:
            drawn = opened.convert("RGB")
        colours = drawn.getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 100
        corners.append(sum(drawn.load()[0, 0]))
    assert corners[0] > 600 > 200 > corners[1]


@needs_chromium
@pytest.mark.parametrize("crashed", [False, True])
def test_on_a_phone_only_tables_scroll_sideways(crashed: bool, tmp_path: Path) -> None:
    text = written(document(crashed=crashed), tmp_path).read_text("utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe width="{PHONE}" srcdoc="{html.escape(text)}"></iframe><p></p>'
        "<script>onload = () => document.querySelector('p').textContent = 'across: ' +"
        " document.querySelector('iframe').contentDocument.documentElement.scrollWidth</script>",
        "utf-8",
    )
    assert f"across: {PHONE}" in dom(frame)


def test_the_instruction_sets_of_both_sides_are_named(tmp_path: Path) -> None:
    found = document("mmlu") | {"instruction_sets": {OURS: "AVX2 AMX_BF16", LLAMA: "AVX2"}}
    text = read(found, tmp_path).text
    assert f"instruction sets of {OURS}AVX2 AMX_BF16" in text
    assert f"instruction sets of {LLAMA}AVX2" in text
