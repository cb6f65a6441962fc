"""Finding a fast BLAS before MLX is imported. Each case runs in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_mlx import blas
from tests.models.conftest import LLAMA, random_weights, write_folder

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: elsewhere MLX brings a fast BLAS"
)


def run(code: str, first: str = "", **environment: str) -> str:
    """Run `first`, hide MKL and the system's libraries, run `code`; returns what was printed."""
    hide = "blas._SYSTEM_NAMES = (); blas.sys.prefix = '/nonexistent'"
    hidden = f"{first}\nfrom sgl_mlx import blas; {hide}\n"
    done = subprocess.run(
        [sys.executable, "-c", hidden + code],
        env={**os.environ, "SGL_MLX_BLAS": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


@linux_only
def test_the_named_library_is_loaded_for_everyone() -> None:
    code = "import ctypes; print(blas.load_fast_blas()); ctypes.CDLL(None).cos"
    assert "library='libm.so.6', too_late=False" in run(code, SGL_MLX_BLAS="libm.so.6")


@linux_only
def test_without_any_the_remedy_is_told_once() -> None:
    out = run("print(blas.load_fast_blas()); print(blas.load_fast_blas())")
    assert out.count("None") == 2
    assert out.count("SlowBlasWarning") == 1
    assert "apt-get install libopenblas0-pthread" in out
    assert "pip install mkl" in out


@linux_only
def test_a_named_library_that_does_not_load_is_reported() -> None:
    out = run("blas.load_fast_blas()", SGL_MLX_BLAS="/no/such.so")
    assert "SGL_MLX_BLAS=/no/such.so: " in out


@linux_only
def test_coming_after_mlx_is_said_in_the_answer() -> None:
    out = run("print(blas.load_fast_blas())", first="import mlx.core", SGL_MLX_BLAS="libm.so.6")
    assert "too_late=True" in out
    assert "about 20 times slower" in out
    assert "import sgl_mlx before mlx" in out


@linux_only
def test_system_libraries_are_tried_after_mkl() -> None:
    code = (
        "blas._SYSTEM_NAMES = ('libnothing.so', 'libm.so.6'); tried = []\n"
        "blas._load = lambda name: bool(tried.append(name)) or name == 'libm.so.6'\n"
        "blas.Path.glob = lambda path, pattern: iter([path / 'libmkl_rt.so.2'])\n"
        "blas.load_fast_blas(); print(tried)"
    )
    assert "['/nonexistent/lib/libmkl_rt.so.2', 'libnothing.so', 'libm.so.6']" in run(code)


def test_nothing_is_loaded_where_mlx_needs_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas.sys, "platform", "darwin")
    monkeypatch.setattr(blas, "_candidates", lambda: pytest.fail("looked for a library"))
    assert blas.load_fast_blas.__wrapped__() is None


WHETHER_LOADED = "print('mlx.core' in sys.modules, blas.load_fast_blas.cache_info().currsize)"


@linux_only
@pytest.mark.parametrize(
    "module",
    ["sgl_mlx", "sgl_mlx.models", "sgl_mlx.runtime", "sgl_mlx.runtime.scheduler", "sgl_mlx.cli"],
)
def test_without_mlx_no_blas_is_loaded(module: str) -> None:
    assert run(f"import sys, {module}; {WHETHER_LOADED}").split() == ["False", "0"]


@linux_only
@pytest.mark.parametrize("module", ["mlx.core", "mlx.nn", "sgl_mlx.runtime.engine"])
def test_whoever_imports_mlx_the_blas_is_there_before_it(module: str) -> None:
    code = f"import sys, {module}; print(blas.load_fast_blas()); {WHETHER_LOADED}"
    out = run(code, SGL_MLX_BLAS="libm.so.6")
    assert out.splitlines() == ["Blas(library='libm.so.6', too_late=False)", "True 1"]


@linux_only
def test_after_mlx_a_model_loads_with_a_warning_that_says_what_is_slower(tmp_path: Path) -> None:
    config = LLAMA.full_config()
    folder = write_folder(tmp_path / "toy", config, random_weights(config))
    code = f"from sgl_mlx.models.loader import load; print(load({str(folder)!r}).name)"
    out = run(code, first="import mlx.core", SGL_MLX_BLAS="libm.so.6")
    assert "toy" in out
    assert out.count("about 20 times slower than with libm.so.6") == 1
