from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from sgl_mlx.cli import commands
from sgl_mlx.cli import engine as cli_engine
from sgl_mlx.errors import ModelNotFoundError

HEAVY = ("mlx", "mlx_lm", "numpy", "transformers", "huggingface_hub", "tokenizers", "rich")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from sgl_mlx.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_version_is_that_of_the_package(sgl) -> None:
    assert sgl("--version").output == f"sgl-mlx {metadata.version('sgl-mlx')}\n"


@pytest.mark.parametrize("name", sorted(commands.main.commands))
def test_every_command_explains_itself(sgl, name: str) -> None:
    result = sgl(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: sgl-mlx {name}" in result.output
    assert commands.main.commands[name].get_short_help_str(100)[-3:] != "..."


def test_our_errors_are_one_message_and_code_1(sgl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_engine, "create_engine", _missing_model)
    result = sgl("generate", "hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no model 'nowhere'\n"


@pytest.mark.parametrize("debug", ["option", "environment"])
def test_debug_lets_the_traceback_through(sgl, monkeypatch: pytest.MonkeyPatch, debug: str) -> None:
    monkeypatch.setattr(cli_engine, "create_engine", _missing_model)
    if debug == "environment":
        monkeypatch.setenv("SGL_MLX_DEBUG", "1")
    result = sgl(*(["--debug"] if debug == "option" else []), "generate", "hello")
    assert isinstance(result.exception, ModelNotFoundError)


def test_usage_errors_have_code_2(sgl) -> None:
    assert sgl("generate").exit_code == 2
    assert sgl("generate", "x", "--max-tokens", "many").exit_code == 2
    assert sgl("nonsense").exit_code == 2


def test_ctrl_c_ends_with_130(sgl, use) -> None:
    backend = use([KeyboardInterrupt()])
    result = sgl("generate", "hello")
    assert result.exit_code == commands.INTERRUPTED == 130
    assert result.stderr == "interrupted\n"
    assert backend.stopped


def test_the_model_option_and_its_variable_reach_the_engine(
    sgl, use, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, asked = use(), []
    monkeypatch.setattr(
        cli_engine, "create_engine", lambda o: asked.append(o.model_path) or backend
    )
    sgl("generate", "x", "--model", "org/one")
    monkeypatch.setenv("SGL_MLX_MODEL", "org/two")
    sgl("generate", "x")
    assert asked == ["org/one", "org/two"]


def test_engine_options_reach_the_engine(sgl, use, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, asked = use(), []
    monkeypatch.setattr(cli_engine, "create_engine", lambda o: asked.append(o) or backend)
    sgl("generate", "x", "--kv-bits", "8", "--model", "m")
    assert asked == [cli_engine.EngineOptions("m", kv_bits=8)]


def test_the_disk_cache_reaches_the_engine(sgl, use, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, asked = use(), []
    monkeypatch.setattr(cli_engine, "create_engine", lambda o: asked.append(o) or backend)
    sgl("generate", "x", "--disk-cache", "kept", "--disk-cache-size", "3MB")
    assert [(o.disk_cache_dir, o.disk_cache_bytes) for o in asked] == [("kept", 3_000_000)]


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"], ["demo"], ["bench", "engine"]])
def test_bits_that_no_pool_has_are_refused_before_anything_is_loaded(sgl, command) -> None:
    result = sgl(*command, "--kv-bits", "5", "--model", "nowhere")
    assert result.exit_code == 1
    assert result.stderr == "Error: kv_bits must be 8, or None for the model's own dtype, got 5\n"


def _missing_model(options: cli_engine.EngineOptions) -> None:
    raise ModelNotFoundError("no model 'nowhere'")
