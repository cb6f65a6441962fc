"""Verdicts hold for the machine and the text of the kernels on which they were found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.metal_kernels import records, verdicts
from sgl_mlx.metal_kernels.verdicts import Verdict, VerdictFile, kept_verdicts

GOOD = Verdict("extend(heads=4)", True, "differs by 1e-6 at most")
BAD = Verdict("decode(heads=4)", False, "error: no such function\n  exp3(x)")

SEEN = st.builds(Verdict, st.text(min_size=1), st.booleans(), st.text())


@given(first=st.lists(SEEN), second=st.lists(SEEN))
def test_what_is_added_comes_back_and_later_verdicts_win(
    first: list[Verdict], second: list[Verdict], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = VerdictFile(tmp_path_factory.mktemp("verdicts"))
    file.add(first)
    file.add(second)
    wanted = {v.case: v for v in [*first, *second]}
    found = file.load()
    assert {case: v.good for case, v in found.items()} == {c: v.good for c, v in wanted.items()}
    assert all(v.seen == wanted[case].summary for case, v in found.items())


def test_the_compilers_whole_text_is_in_the_log_alone(tmp_path: Path) -> None:
    file = VerdictFile(tmp_path)
    file.add([GOOD, BAD])
    assert file.load()[BAD.case].seen == "error: no such function"
    assert "exp3" not in file.path.read_text()
    assert file.log.read_text() == f"== {BAD.case}\n{BAD.seen}\n"


@pytest.mark.parametrize("changed", ["chip", "system", "mlx", "kernels"])
def test_another_machine_or_text_knows_nothing(
    tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    VerdictFile(tmp_path).add([GOOD])
    other = {**records.machine(), changed: "another"}
    monkeypatch.setattr(records, "machine", lambda: other)
    assert VerdictFile(tmp_path).load() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"verdicts": 3}', '{"verdicts": [["x", true]]}'])
def test_a_broken_file_counts_as_empty(tmp_path: Path, text: str) -> None:
    file = VerdictFile(tmp_path)
    file.add([GOOD])
    file.path.write_text(text)
    assert file.load() == {}


def test_all_that_is_kept_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "cache_folder", lambda: tmp_path)
    assert kept_verdicts() == []
    VerdictFile().add([GOOD, BAD])
    assert kept_verdicts() == [GOOD, Verdict(BAD.case, False, BAD.summary)]
