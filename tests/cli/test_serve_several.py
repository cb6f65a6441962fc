"""`sgl-mlx serve` with several models and adapters, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import Result

from sgl_mlx.cli.served_models import named
from tests.cli.test_serve import Start, invitation, start
from tests.models.test_lora import matrices, write_adapter
from tests.patience import PATIENCE
from tests.runtime.conftest import toy_folder

__all__ = ["start", "toy_folder"]


def test_models_and_adapters_are_answered_by_name(
    start: Start, toy_folder: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "lora", matrices(toy_folder), "mlx-lm")
    names = ["--model", f"one={toy_folder}", "--model", f"two={toy_folder}"]
    process = start(*names, "--adapter", f"one:mine={adapter}", model="")
    url, _ = invitation(process)

    def text(name: str) -> str:
        body = {"model": name, "prompt": "abab", "max_tokens": 12, "ignore_eos": True}
        answer = httpx.post(
            f"{url}/v1/completions", json={**body, "temperature": 0}, timeout=PATIENCE
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name
        return str(answer.json()["choices"][0]["text"])

    texts = [text(name) for name in ("one", "two", "one:mine", "one", "one:mine", "two")]
    one, mine = texts[0], texts[2]
    assert texts == [one, one, mine, one, mine, one]
    assert mine != one
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert [(m["id"], m["root"]) for m in listed] == [
        *(("one", "one"), ("one:mine", "one"), ("two", "two"))
    ]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a=x", "--model", "a=y"], "two models or adapters are called 'a'"),
        (["--model", "a=x", "--adapter", "b:c=y"], "must be BASE:NAME=FOLDER with BASE one of a"),
        (["--model", "a=x", "--adapter", "a:y"], "must be BASE:NAME=FOLDER"),
        (["--model", "a=x", "--model", "b=y", "--mmproj", "z"], "for a single model"),
    ],
)
def test_wrong_names_are_refused(sgl: object, options: list[str], message: str) -> None:
    done: Result = sgl("serve", *options)  # type: ignore[operator]
    assert done.exit_code == 2
    assert message in done.output


def test_a_budget_that_no_model_fits_is_an_error(start: Start, toy_folder: Path) -> None:
    names = ["--model", f"one={toy_folder}", "--model", f"two={toy_folder}", "--memory", "1MB"]
    process = start(*names, model="")
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert "the budget is 0.00 GiB" in said


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose memory is measured")
def test_a_model_that_was_closed_leaves_no_memory_behind() -> None:
    program = Path(__file__).with_name("swapped_models.py")
    done = subprocess.run(
        [sys.executable, str(program), "smollm2"],
        capture_output=True,
        text=True,
        timeout=450,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=True,
    )
    *earlier, last = json.loads(done.stdout)["closed"]
    assert last <= 1.05 * max(earlier)  # the first round may leave less, by its threads' timing


def test_an_equals_sign_in_a_files_name_makes_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("a=b.gguf") == ("a", "b.gguf")
    (tmp_path / "a=b.gguf").touch()
    assert named("a=b.gguf") == ("a=b.gguf", "a=b.gguf")
    assert named("c=a=b.gguf") == ("c", "a=b.gguf")
