"""Drafts, grammars, logprobs, choices and pictures work on several ranks as on one process."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from tests.runtime.conftest import write_toy
from tests.runtime.llava import write_llava
from tests.runtime.ranks.features import run
from tests.runtime.ranks.launcher import Launched, python


def test_every_kind_of_request_is_answered_as_by_one_process(tmp_path: Path) -> None:
    text, pictures = write_toy(tmp_path / "text"), write_llava(tmp_path / "pictures")
    (text / "generation_config.json").write_text('{"eos_token_id": 2}')  # grammars need an end
    models, file = [str(text), str(pictures)], tmp_path / "answers"
    command = python("tests.runtime.ranks.features", str(file), *models)
    with Launched(tmp_path / "run", command) as ranks:
        assert ranks.codes() == [0, 0], ranks.output(0, "err")
    found = json.loads(file.read_text())
    mx.disable_compile()
    try:
        alone = run(*models)
    finally:
        mx.enable_compile()
    assert [answers["tokens"] for answers in found] == [answers["tokens"] for answers in alone]
    for name in ("logprobs", "choices"):
        assert found[0][name] == pytest.approx(alone[0][name], abs=1e-4)
