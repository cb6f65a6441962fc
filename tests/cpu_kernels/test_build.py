"""Compiling the CPU kernels, and what is said when that cannot be."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from sgl_mlx import machine
from sgl_mlx.cpu_kernels import build
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.mode import VARIABLE

pytestmark = pytest.mark.skipif(
    machine.system() != "linux", reason="needs Linux: the CPU kernels are compiled there alone"
)


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no memory of what was loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    return tmp_path


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    compiler = folder / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "_COMPILERS", (str(compiler),))


def test_without_a_compiler_it_says_what_to_install(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_COMPILERS", ("no-such-compiler",))
    with pytest.raises(KernelError, match=r"no C\+\+ compiler.*apt-get install g\+\+"):
        build.compile_kernels()


def test_what_the_compiler_says_is_passed_on_and_nothing_kept(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(nothing_compiled, monkeypatch, "echo 'no such flag' >&2; exit 1")
    with pytest.raises(KernelError, match="no such flag"):
        build.compile_kernels()
    assert build.load() is None
    assert build.why_not() is not None


def test_what_was_compiled_is_kept(nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = nothing_compiled / "calls"
    script = f'echo call >> {calls}; while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    fake_compiler(nothing_compiled, monkeypatch, script)
    library = build.compile_kernels()
    assert library == build.compile_kernels()
    assert calls.read_text() == "call\n"
    assert library.read_text() == "made\n"
    assert list(library.parent.iterdir()) == [library]


def test_a_library_that_does_not_load_is_not_used(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    fake_compiler(nothing_compiled, monkeypatch, script)
    build.compile_kernels()
    assert build.load() is None
    assert "CPU kernels are not used" in caplog.text
    assert build.why_not() == "the CPU kernels do not load; the log says why"


def test_missing_nanobind_is_named(nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match=r"pip install 'sgl-mlx\[cpu\]'"):
        build.compile_kernels()


def test_the_environment_switches_them_off(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_cpu_kernels() is kernels
    monkeypatch.setenv(VARIABLE, "off")
    assert open_cpu_kernels() is None


def test_force_says_why_there_are_none(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_cpu_kernels() is None
    monkeypatch.setenv(VARIABLE, "force")
    with pytest.raises(KernelError, match=r"not compiled.*sgl-mlx kernels build"):
        open_cpu_kernels()


@pytest.mark.parametrize(("asked", "meant"), [("1", 1), ("3", 3)])
def test_threads_are_bounded_by_omp_num_threads(
    asked: str, meant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert build.threads() == meant


@pytest.mark.parametrize("asked", ["", "0", "many"])
def test_other_words_leave_one_for_each_processor(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 5})
    assert build.threads() == 3


def test_one_library_is_kept_and_loaded_with_or_without_amx(
    nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = nothing_compiled / "calls"
    script = f'echo "$@" >> {calls}; while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    fake_compiler(nothing_compiled, monkeypatch, script)
    for amx in (True, False, False, True):
        library = build.compile_kernels(amx)
        assert list(library.parent.iterdir()) == [library]
        assert build.why_not() == "the CPU kernels do not load; the log says why"  # it exists
    flags = ["-U__AMX_BF16__" in line for line in calls.read_text().splitlines()]
    assert flags == [False, True, False]


def test_without_amx_the_rest_is_compiled_in(
    nothing_compiled: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.compile_kernels(amx=False)
    without = build.load()
    assert without is not None
    assert not without.multiplies_tiles()
    rest = [name for name in kernels.instruction_sets().split() if not name.startswith("AMX")]
    assert build.compiled_for().split() == rest != []
