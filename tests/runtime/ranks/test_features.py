"""Drafts, grammars, logprobs, choices and pictures work on several ranks as on one process."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from tests.runtime.llava import write_llava
from tests.runtime.ranks.features import run
from tests.runtime.ranks.launcher import Launched, python
from tests.runtime.ranks.toys import write_toy


@pytest.mark.parametrize(
    ("pipeline", "architecture", "pictures"),
    [(False, "llama", "llava"), (True, "qwen2", "llava_onevision")],
)
def test_every_kind_of_request_is_answered_as_by_one_process(
    pipeline: bool, architecture: str, pictures: str, tmp_path: Path
) -> None:
    model = write_toy(tmp_path / "text", architecture)
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')  # grammars need an end
    models = [str(model), str(write_llava(tmp_path / "pictures", pictures))]
    file, options = tmp_path / "answers", json.dumps({"pipeline": pipeline})
    command = python("tests.runtime.ranks.features", str(file), options, *models)
    with Launched(tmp_path / "run", command) as ranks:
        assert ranks.codes() == [0, 0], ranks.output(0, "err")
    found = json.loads(file.read_text())
    mx.disable_compile()
    try:
        alone = run(*models)
    finally:
        mx.enable_compile()
    text, eight_bits, shown = zip(found, alone, strict=True)
    for here, there in (text, shown):
        assert here["tokens"] == there["tokens"]
    for (here, there), tolerance in ((text, 1e-4), (eight_bits, 0.05)):  # 8 bits enlarge rounding
        for name in ("logprobs", "choices"):
            assert here[name] == pytest.approx(there[name], abs=tolerance)
