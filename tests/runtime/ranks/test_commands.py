"""Commands under `mlx.launch`: rank 0 alone prints, and Ctrl-C ends all ranks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from click.testing import CliRunner

from sgl_mlx.cli import main
from sgl_mlx.cli import serve as command
from sgl_mlx.compat.engine import Engine
from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.runtime.ranks.launch import Launch
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
        ranks.wait_for("")
        found = re.search(r"ready at (\S+)", ranks.output())
        assert found, ranks.output()
        info = httpx.get(f"{found[1]}/get_server_info", timeout=LIMIT).json()
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 3}}
        answer = httpx.post(f"{found[1]}/generate", json=body, timeout=LIMIT)
        assert info["ranks"] == 2
        assert answer.json()["meta_info"]["completion_tokens"] == 3
        for rank in (0, 1):  # as the terminal does
            ranks.signal(rank, signal.SIGINT)
        assert ranks.codes() == [0, 0]
        assert ranks.output(1) == ranks.output(1, "err") == ""


def test_hidden_states_are_refused_on_several_ranks(toy_folder: Path) -> None:
    with Engine(str(toy_folder), max_total_tokens=100, speculate="off") as engine:
        engine._model = replace(engine._model, ranks=cast(Any, object()))
        with pytest.raises(UnsupportedModelError, match="several ranks run the model"):
            engine.encode(input_ids=[5, 6])


def test_several_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "launched", lambda: Launch(0, 2, "ring", "here", 1))
    asked = CliRunner().invoke(main, ["serve", "--port", "0", "--model=a=x", "--model=b=y"])
    assert asked.exit_code == 2
    assert "several ranks serve a single model" in asked.output
