"""Compiling of the CPU kernels for this machine's processor, and loading of the library.

The library works with one version of MLX, nanobind and Python on one kind of processor, so its file
name contains a hash of these. Compiling takes about 20 seconds. It happens only on request
(`sgl-mlx kernels build`, `make setup`), never while a model is loaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import mlx.core as mx

from sgl_mlx import machine
from sgl_mlx.errors import KernelError

log = logging.getLogger(__name__)

_MODULE = "_kernels"
_MAIN = "module.cpp"
_COMPILERS = ("g++", "clang++", "clang++-19")
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden")
_WITHOUT_AMX = ("-U__AMX_TILE__", "-U__AMX_INT8__", "-U__AMX_BF16__")
_FOR_LINUX = "the CPU kernels are for Linux"
_REMEDY = "install a C++ compiler (`apt-get install g++`), then run `sgl-mlx kernels build`"


def compile_kernels(amx: bool = True) -> Path:
    """Compile the CPU kernels for this processor, unless the library exists already.

    The library with the other value of `amx` is removed, because only one can be loaded.

    Args:
        amx: True uses the processor's matrix unit, if it has one.

    Returns:
        The path of the library.

    Raises:
        KernelError: this is not Linux, a tool or header is missing, or the compiler failed.
    """
    if machine.system() != "linux":
        raise KernelError(_FOR_LINUX)
    compiler = _compiler()
    if compiler is None:
        raise KernelError(f"there is no C++ compiler; {_REMEDY}")
    full, without_amx = _libraries()
    library, other = (full, without_amx) if amx else (without_amx, full)
    if not library.exists():
        _compile(compiler, [] if amx else [*_WITHOUT_AMX], library)
    other.unlink(missing_ok=True)
    return library


def _compile(compiler: str, flags: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        done = subprocess.run(
            [compiler, *_FLAGS, *flags, *_arguments(), "-o", str(made)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise KernelError(
                f"{compiler} could not compile the CPU kernels:\n{done.stderr[-2000:]}"
            )
        made.replace(library)


def compiled_for() -> str:
    """Return the instruction sets that the kernels were compiled for; "" if they do not load."""
    kernels = load()
    return "" if kernels is None else str(kernels.instruction_sets())


def why_not() -> str | None:
    """Return why the CPU kernels cannot be used, and a remedy if there is one; None if they can."""
    if machine.system() != "linux":
        return _FOR_LINUX
    if not _library().exists():
        return f"the CPU kernels are not compiled; {_REMEDY}"
    return None if load() else "the CPU kernels do not load; the log says why"


@cache
def load() -> ModuleType | None:
    """Load the compiled kernels and start their threads; None if they are missing or do not work.

    The result is cached for the process.
    """
    if machine.system() != "linux" or not (library := _library()).exists():
        return None
    spec = spec_from_file_location(
        _MODULE, library, loader=ExtensionFileLoader(_MODULE, str(library))
    )
    assert spec is not None
    assert spec.loader is not None
    try:
        kernels = module_from_spec(spec)
        spec.loader.exec_module(kernels)
        kernels.start_threads(threads())
        kernels.rms_norm(mx.ones((1, 1), stream=mx.cpu), None, 0.0)  # TypeError if refused
    except (ImportError, TypeError) as error:
        log.warning("the CPU kernels are not used: %s", error)
        return None
    return kernels


def threads() -> int:
    """Return the number of threads: OMP_NUM_THREADS, else one for each usable processor."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def _compiler() -> str | None:
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def _library() -> Path:
    """Return the path of the compiled library, or the path where it will be."""
    full, without_amx = _libraries()
    return without_amx if without_amx.exists() else full


def _libraries() -> tuple[Path, Path]:
    """Return the paths of the library with every instruction set, and of the one without AMX."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cached / "sgl-mlx" / "cpu-kernels"
    return folder / f"{_fingerprint()}.so", folder / f"{_fingerprint()}-without-amx.so"


@cache
def _fingerprint() -> str:
    digest = hashlib.sha256()
    here = files(__package__)
    for file in sorted(x.name for x in here.iterdir() if x.name.endswith((".h", ".cpp"))):
        digest.update(here.joinpath(file).read_bytes())
    try:
        bound_to = [version("mlx"), version("nanobind")]
    except PackageNotFoundError:
        bound_to = [version("mlx")]
    digest.update(repr([*bound_to, sys.version, _FLAGS, _processor()]).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Return the processor's model and features, as text of /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(named)}))


def _arguments() -> list[str]:
    nanobind = find_spec("nanobind")
    if nanobind is None or nanobind.origin is None:
        raise KernelError("nanobind is not installed: pip install 'sgl-mlx[cpu]'")
    binder, library = Path(nanobind.origin).parent, Path(mx.__file__).parent
    include = [library / "include", binder / "include", binder / "ext/robin_map/include"]
    include.append(Path(sysconfig.get_path("include")))
    if not (include[-1] / "Python.h").exists():
        raise KernelError(
            f"{include[-1]} has no Python.h: install its headers (`apt-get install python3-dev`)"
        )
    return [
        *(f"-I{folder}" for folder in include),
        "-DNB_DOMAIN=mlx",  # to share the type of arrays with MLX's own binding
        "-Wno-psabi",
        str(files(__package__) / _MAIN),
        str(binder / "src/nb_combined.cpp"),
        f"-L{library / 'lib'}",
        "-lmlx",
        f"-Wl,-rpath,{library / 'lib'}",
    ]
