"""Finding a fast BLAS before MLX is imported. Each case runs in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sgl_mlx import blas

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: elsewhere MLX brings a fast BLAS"
)


def run(code: str, **environment: str) -> str:
    """What `code` prints, with MKL and the system's libraries out of sight unless named."""
    hidden = "from sgl_mlx import blas; blas._SYSTEM_NAMES = (); blas.sys.prefix = '/nonexistent'\n"
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
    code = "import mlx.core; print(blas.load_fast_blas())"
    out = run(code, SGL_MLX_BLAS="libm.so.6")
    assert "too_late=True" in out
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


def test_importing_models_comes_before_mlx() -> None:
    code = (
        "import sys, sgl_mlx.models; print('mlx.core' in sys.modules);"
        "print(blas.load_fast_blas.cache_info().currsize)"
    )
    assert run(code, SGL_MLX_BLAS="libm.so.6").split() == ["False", "1"]
