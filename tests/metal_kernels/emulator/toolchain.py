"""C++ to shared objects: found once, compiled once, kept by content."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.metal_kernels.emulator.errors import CompileError

SHIM = Path(__file__).parent / "shim"
CANDIDATES = (*(f"clang++-{version}" for version in range(22, 15, -1)), "clang++")
_COMMON = ("-std=c++20", "-march=native", "-fPIC", "-shared", "-Wno-everything")
_RUNTIME = (*_COMMON, "-O2")
# One compiler pass checks each memory access, another what C++ leaves undefined; memory.cpp is the
# runtime of both. Every float operation is rounded by itself, as the shader compiler would.
_KERNEL = (
    *_COMMON,
    "-O1",
    "-gline-tables-only",
    "-ffp-contract=off",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-fsanitize=thread,alignment,bounds,bool,integer-divide-by-zero,shift,signed-integer-overflow",
    "-fno-sanitize-recover=all",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-atomics=0",
    "-Werror=vla-cxx-extension",
    "-Werror=return-type",
)


@cache
def compiler() -> str | None:
    """The newest clang++ of version 16 or later, or None: older ones lack rounded `_Float16`."""
    for name in CANDIDATES:
        path = shutil.which(name)
        if path and _major(path) >= 16:
            return path
    return None


def required_compiler() -> str:
    """As `compiler`; raises CompileError when there is none."""
    path = compiler()
    if path is None:
        raise CompileError(f"no clang++ of version 16 or later; tried {', '.join(CANDIDATES)}")
    return path


@cache
def _major(path: str) -> int:
    asked = subprocess.run([path, "-dumpversion"], capture_output=True, text=True, check=True)
    major = int(asked.stdout.split(".")[0])
    return major + 1 if sys.platform == "darwin" else major  # Apple counts ahead of LLVM


@cache
def runtime() -> Path:
    """The scheduler and the memory checks, as a library."""
    return _built(
        _RUNTIME, [SHIM / f"{part}.cpp" for part in ("runtime", "memory", "traps")], "runtime"
    )


def kernel(program: str, name: str) -> Path:
    """The library of one rewritten kernel; `program` includes the shim's headers by name."""
    folder = _folder()
    key = hashlib.sha256(program.encode()).hexdigest()[:16]
    source = folder / f"{key}.cpp"
    if not source.exists():
        _write(source, program)
    return _built(_KERNEL, [source], name)


def lines(library: str, offset: int) -> list[tuple[str, int]]:
    """(file, line) of an instruction, innermost inlined call first; empty without addr2line."""
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if tool is None:
        return []
    command = [tool, "-i", "-e", library, hex(offset)]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    places = (line.split(" ")[0].rpartition(":") for line in out.splitlines())
    return [(file, int(number)) for file, _, number in places if number.isdigit()]


def _built(flags: tuple[str, ...], sources: list[Path], name: str) -> Path:
    content = [_target(), *flags, *(p.read_text() for p in sources)]
    content += [p.read_text() for p in sorted(SHIM.glob("*.hpp"))]
    key = hashlib.sha256("\0".join(content).encode()).hexdigest()[:24]
    library = _folder() / f"{name[:80]}-{key}.so"
    if not library.exists():
        _compile(flags, sources, library)
    return library


def _compile(flags: tuple[str, ...], sources: list[Path], library: Path) -> None:
    partial = library.with_suffix(f".{os.getpid()}.tmp")
    link = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    command = [
        required_compiler(),
        *flags,
        *link,
        f"-I{SHIM}",
        *map(str, sources),
        "-o",
        str(partial),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr)
    partial.replace(library)  # whole or not there: other processes may be compiling the same


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(text)
    partial.replace(path)


@cache
def _target() -> str:
    """The compiler's version and the machine's instruction set, as predefined macros."""
    command = [required_compiler(), "-march=native", "-E", "-dM", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"sgl-mlx-emulator-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise CompileError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder
