from __future__ import annotations

import json
import warnings

import pytest

from sgl_mlx.cli import checks
from sgl_mlx.errors import ModelNotFoundError


@pytest.fixture(autouse=True)
def _fast_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine and the order of imports in this process make of it."""
    monkeypatch.setattr(checks, "load_fast_blas", lambda: None)


def test_a_healthy_machine_has_no_failing_row(sgl) -> None:
    result = sgl("doctor", "--json", "--model", "smollm2")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert {"system", "versions", "chip", "memory", "model", "KV pool"} <= set(rows)
    assert "llama, 135 M parameters" in rows["model"]["detail"]
    assert rows["KV pool"]["detail"].startswith("32,768 tokens in 1.41 GiB")
    assert all(row["status"] == "ok" for row in rows.values())


def test_rows_are_lines_that_begin_with_their_state(sgl) -> None:
    lines = sgl("doctor").stdout.splitlines()
    assert lines[0].split()[:2] == ["ok", "system"]


def test_a_model_that_is_missing_fails_its_row_alone(sgl) -> None:
    result = sgl("doctor", "--json", "--model", "nowhere")
    rows = {row["name"]: row["status"] for row in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert rows["model"] == "fail"
    assert rows["memory"] == "ok"


def test_a_missing_blas_is_a_warning_with_the_remedy(sgl, monkeypatch) -> None:
    monkeypatch.setattr(
        checks, "load_fast_blas", lambda: warnings.warn("install one", stacklevel=1)
    )
    rows = {row["name"]: row for row in json.loads(sgl("doctor", "--json").stdout)}
    assert (rows["BLAS"]["status"], rows["BLAS"]["detail"]) == ("warn", "install one")


def test_a_missing_library_names_its_remedy(monkeypatch) -> None:
    monkeypatch.setattr(checks, "LIBRARIES", ("no-such-library",))
    row = next(row for row in checks.all_checks("smollm2") if row.name == "versions")
    assert (row.status, "pip install no-such-library" in row.detail) == ("fail", True)


def test_a_check_that_raises_becomes_a_failing_row(monkeypatch) -> None:
    def broken() -> checks.Check:
        raise ModelNotFoundError("gone")

    assert checks._checked("x", broken) == checks.Check("x", "fail", "gone")
