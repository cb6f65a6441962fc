"""Commands under `mlx.launch`: rank 0 alone prints, and Ctrl-C ends all ranks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from click.testing import CliRunner

from sgl_mlx.cli import main
from sgl_mlx.cli import serve as command
from sgl_mlx.compat.engine import Engine
from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.runtime.ranks.launch import Launch
from tests.models.test_lora import matrices, write_adapter
from tests.runtime.conftest import toy_folder
from tests.runtime.ranks.launcher import LIMIT, Launched, free_ports

__all__ = ["toy_folder"]

SCRIPTS = Path(sys.executable).parent
COMMAND = [str(SCRIPTS / "sgl-mlx")]


def under_mlx_launch(*arguments: str, given: str = "") -> str:
    """Run a command on two ranks by `mlx.launch`, with this input; return what it prints."""
    port = str(free_ports(1)[0])
    launch = [str(SCRIPTS / "mlx.launch"), "-n", "2", "--backend", "ring", "--starting-port", port]
    done = subprocess.run(
        [*launch, "--", *COMMAND, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mlx_launch_starts_a_command_whose_answer_is_printed_once(toy_folder: Path) -> None:
    asked = ["generate", "--model", str(toy_folder), "--speculate", "off", "--json", "Hello"]
    printed = under_mlx_launch(*asked)
    assert json.loads(printed)["text"]  # one document, not one from each rank


def test_a_chat_reads_its_lines_through_mlx_launch(toy_folder: Path) -> None:
    template = {"chat_template": "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"}
    (toy_folder / "tokenizer_config.json").write_text(json.dumps(template))
    asked = ["chat", "--model", str(toy_folder), "--speculate", "off", "--max-tokens", "4"]
    printed = under_mlx_launch(*asked, given="Hello\n/stats\n/exit\n")
    assert printed.count("/help lists what else you can type") == 1
    assert "prompt tokens" in printed.splitlines()[-1]


def test_the_server_answers_and_ctrl_c_ends_all_ranks(toy_folder: Path, tmp_path: Path) -> None:
    serve = [*COMMAND, "serve", str(toy_folder), "--port", "0", "--speculate", "off"]
    with Launched(tmp_path / "run", serve) as ranks:
        url = address(ranks)
        info = httpx.get(f"{url}/get_server_info", timeout=LIMIT).json()
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 3}}
        answer = httpx.post(f"{url}/generate", json=body, timeout=LIMIT)
        assert info["ranks"] == 2
        assert answer.json()["meta_info"]["completion_tokens"] == 3
        for rank in (0, 1):  # as the terminal does
            ranks.signal(rank, signal.SIGINT)
        assert ranks.codes() == [0, 0]
        assert ranks.output(1) == ranks.output(1, "err") == ""


def test_the_server_answers_by_adapters_too(toy_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", matrices(toy_folder), "PEFT")
    names = ["--model", f"base={toy_folder}", "--adapter", f"base:mine={adapter}"]
    serve = [*COMMAND, "serve", *names, "--port", "0", "--speculate", "off"]
    with Launched(tmp_path / "run", serve) as ranks:
        url = address(ranks)
        texts = [complete(url, name) for name in ("base", "base:mine", "base", "base:mine")]
        assert texts[:2] == texts[2:]
        assert texts[0] != texts[1]
        for rank in (0, 1):
            ranks.signal(rank, signal.SIGINT)
        assert ranks.codes() == [0, 0]


def address(ranks: Launched) -> str:
    """Wait until the server is ready; return its address."""
    ranks.wait_for("")
    found = re.search(r"ready at (\S+)", ranks.output())
    assert found, ranks.output()
    return found[1]


def complete(url: str, model: str) -> str:
    body = {"model": model, "prompt": "abab", "max_tokens": 12, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json={**body, "temperature": 0}, timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_hidden_states_are_refused_on_several_ranks(toy_folder: Path) -> None:
    with Engine(str(toy_folder), max_total_tokens=100, speculate="off") as engine:
        engine._model = replace(engine._model, ranks=cast(Any, object()))
        with pytest.raises(UnsupportedModelError, match="several ranks run the model"):
            engine.encode(input_ids=[5, 6])


def test_the_module_of_several_ranks_is_refused_and_its_thread_is_not(toy_folder: Path) -> None:
    with Engine(str(toy_folder), max_total_tokens=100, speculate="off") as engine:
        engine._model = replace(engine._model, ranks=cast(Any, SimpleNamespace(size=2)))
        with pytest.raises(UnsupportedModelError, match=r"2 ranks.* use generate"):
            engine.run_on_model(lambda module: module)
        assert engine.run_on_thread(get_ident) == engine._engine_thread


def test_several_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "launched", lambda: Launch(0, 2, "ring", "here", 1))
    asked = CliRunner().invoke(main, ["serve", "--port", "0", "--model=a=x", "--model=b=y"])
    assert asked.exit_code == 2
    assert "several ranks serve a single model" in asked.output
