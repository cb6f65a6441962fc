"""`sgl-mlx selfcheck`: the table, the exit code, and the program that shows a difference."""

from __future__ import annotations

import json

import pytest

from sgl_mlx.selfcheck import check
from sgl_mlx.selfcheck.ways import WAYS
from tests.selfcheck.models import write_model
from tests.selfcheck.mutations import MUTATIONS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model("plain", tmp_path_factory.mktemp("models") / "plain"))


def test_the_table_has_a_row_for_each_property(sgl, model: str) -> None:
    result = sgl("selfcheck", "--model", model, "--programs", "8", "--seed", "3")
    assert result.exit_code == 0, result.output
    for way in WAYS:
        [row] = [line.split() for line in result.stdout.splitlines() if way.name in line]
        assert row[-1] == "0"
    assert "16 programs, seed 3: no difference" in result.stdout


def test_a_difference_ends_with_code_1_and_a_program(sgl, model: str, monkeypatch) -> None:
    MUTATIONS["noise of the first row for all rows"].plant(monkeypatch)
    result = sgl("selfcheck", "--model", model, "--programs", "400", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["difference"]
    assert found["reproduced"]
    assert "reproduce(" in found["program"]


def test_ctrl_c_prints_the_table_so_far(sgl, model: str, monkeypatch) -> None:
    whole = check.SelfCheck.round

    def interrupted(self: check.SelfCheck, number: int) -> None:
        if number:
            raise KeyboardInterrupt
        whole(self, number)

    monkeypatch.setattr(check.SelfCheck, "round", interrupted)
    result = sgl("selfcheck", "--model", model, "--minutes", "5")
    assert result.exit_code == 130
    assert "16 programs, seed 0" in result.stdout
    assert "interrupted" in result.stderr
