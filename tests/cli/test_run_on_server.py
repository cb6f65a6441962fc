"""`sgl-mlx run --backend URL` runs programs on a server."""

from __future__ import annotations

from tests.cli.test_run import HELLO
from tests.server.conftest import script, serve

__all__ = ["script", "serve"]


def test_a_program_runs_on_a_server(sgl, program, script) -> None:
    engine, url = script(" Hi.", api_keys=["secret"])
    result = sgl(
        "run", program(HELLO), "--arg", "name=Ada", "--backend", url, "--api-key", "secret"
    )
    assert (result.stdout, result.stderr) == ("Hello Ada! Hi.\n", "")
    assert engine.prompts == ["Hello Ada!"]


def test_a_whole_file_runs_on_a_server(sgl, program, script) -> None:
    engine, url = script(" Hi.")
    file = program(HELLO + "\nprint(hello.run('Ada')['reply'])\n")
    result = sgl("run", file, "--as-sglang", "--backend", url)
    assert result.stdout == " Hi.\n", result.output
    assert engine.prompts == ["Hello Ada!"]
