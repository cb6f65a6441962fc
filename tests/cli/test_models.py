from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_mlx.models import resolve
from sgl_mlx.models.architectures import counts, table
from sgl_mlx.models.resolve import LocalModel
from tests.models.toy import toy_config


def test_list_shows_name_size_and_path(sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [LocalModel("org/a", Path("here/a"), 1_500_000_000)]
    monkeypatch.setattr(resolve, "list_local", lambda folder: found)
    assert sgl("models", "list").stdout == "org/a    1.50 GB  here/a\n"


def test_list_of_nothing_says_how_to_get_one(sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "list_local", lambda folder: [])
    result = sgl("models", "list")
    assert result.stdout == ""
    assert "models pull" in result.stderr


def test_pull_prints_where_the_model_lies(sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "resolve", lambda name, announce: (name, Path("cache") / name))
    assert sgl("models", "pull", "org/a").stdout == "cache/org/a\n"


def test_info_describes_the_embedded_model(sgl) -> None:
    facts = json.loads(sgl("models", "info", "smollm2", "--json").stdout)
    assert (facts["architecture"], facts["layers"], facts["context_length"]) == ("llama", 30, 8192)
    shown = sgl("models", "info", "smollm2").stdout
    assert "architecture    llama\n" in shown
    assert "context length  8,192\n" in shown


def test_an_unknown_model_is_an_error_that_lists_what_a_name_can_be(sgl) -> None:
    result = sgl("models", "info", "nowhere")
    assert result.exit_code == 1
    assert "no alias (smollm2)" in result.stderr


def test_architectures_says_which_run_and_how_and_why_the_rest_do_not(sgl) -> None:
    result = sgl("models", "--architectures")
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert {row[0]: row[1] for row in rows} == {n: e.path for n, e in table().items()}
    assert all(len(row) == 3 for row in rows if row[1] != "ragged")
    assert result.stderr == ", ".join(f"{n} {path}" for path, n in counts().items()) + "\n"


def test_without_a_subcommand_the_help_is_shown(sgl) -> None:
    assert "Usage: sgl-mlx models" in sgl("models").stdout


def test_kv_takes_folders_with_a_configuration(sgl, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(toy_config("deepseek_v3")))
    (row,) = json.loads(sgl("models", "kv", str(tmp_path), "--json").stdout)["models"]
    assert (row["layers"], row["token"]) == ("4 x 1 x 24 latent", 4 * 24 * 2)
    assert "4 x 1 x 24 latent" in sgl("models", "kv", str(tmp_path)).stdout


def test_kv_without_folders_lists_known_models(sgl) -> None:
    assert "DeepSeek-V2-Lite" in sgl("models", "kv").stdout
