"""The runtime library as Python sees it: buffers in, a launch, buffers out, one at a time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.metal_kernels.emulator import toolchain
from tests.metal_kernels.emulator.errors import Trap

SCHEDULES = ("forward", "reverse", "random:1", "random:2")
"""Order of threads and threadgroups: `random:N` is seeded by N."""

Triple = tuple[int, int, int]
_COUNTERS = ("mmas", "simd_operations", "simd_barriers", "barriers")
_MODES = {"forward": 0, "reverse": 1, "random": 2}
_lock = threading.RLock()


@dataclass
class Placed:
    """One buffer of a launch: `data` goes in (None: poisoned) and, if `writable`, comes out."""

    name: str
    size: int
    data: bytes | None
    writable: bool


@dataclass(frozen=True)
class Counters:
    """Exact counts of one launch. Bytes are per access: lanes that read one address count each."""

    mmas: int
    simd_operations: int
    simd_barriers: int
    barriers: int
    threadgroup_bytes: int
    bytes_read: dict[str, int]
    bytes_written: dict[str, int]


class _Launch(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("schedule", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("kind", ctypes.c_char * 48),
        ("text", ctypes.c_char * 1024),
        ("library", ctypes.c_char * 512),
        ("offset", ctypes.c_uint64),
        ("counters", ctypes.c_uint64 * len(_COUNTERS)),
    )


@dataclass(frozen=True)
class Program:
    """A compiled kernel. `source` is the name that line tables give to the generated text."""

    library: Path
    name: str
    source: str

    def run(
        self,
        buffers: Sequence[Placed],
        grid: Triple,
        threads: Triple,
        schedule: str,
        seconds: float,
    ) -> tuple[list[bytes], Counters]:
        """Run the grid once; the contents of the writable buffers, in order, and the counts."""
        with _lock, _memory(buffers) as addresses:
            launch = _launch(_entry(self.library), addresses, grid, threads, schedule)
            self._go(launch, seconds)
            contents = [
                ctypes.string_at(address, buffer.size)
                for address, buffer in zip(addresses, buffers, strict=True)
                if buffer.writable
            ]
            return contents, _counters(launch, buffers)

    def _go(self, launch: _Launch, seconds: float) -> None:
        timer = threading.Timer(seconds, _runtime().emu_interrupt)
        timer.daemon = True
        timer.start()
        try:
            trapped = _runtime().emu_run(ctypes.byref(launch))
        finally:
            timer.cancel()
        if trapped:
            kind, text = launch.kind.decode(), launch.text.decode()
            raise Trap(kind, text, kernel=self.name, line=self._line(launch))

    def _line(self, launch: _Launch) -> int | None:
        if not launch.library:
            return None
        places = toolchain.lines(launch.library.decode(), launch.offset - 1)
        return next((n for file, n in places if file.endswith(self.source)), None)


@cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(toolchain.runtime()), mode=ctypes.RTLD_GLOBAL)
    library.emu_place.restype = ctypes.c_void_p
    library.emu_place.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    library.emu_threadgroup_bytes.restype = ctypes.c_size_t
    return library


@cache
def _entry(library: Path) -> int:
    _runtime()  # the kernel's undefined names are found there
    entry = ctypes.CDLL(str(library)).emu_entry
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


@contextmanager
def _memory(buffers: Sequence[Placed]) -> Iterator[list[int]]:
    runtime = _runtime()
    addresses = []
    try:
        for slot, buffer in enumerate(buffers):
            name = buffer.name.encode()
            address = runtime.emu_place(slot, name, buffer.size, int(buffer.writable))
            if buffer.data:
                ctypes.memmove(address, buffer.data, buffer.size)
            if not buffer.writable:
                runtime.emu_protect(slot)
            addresses.append(address)
        yield addresses
    finally:
        runtime.emu_release()


def _launch(
    entry: int, addresses: Sequence[int], grid: Triple, threads: Triple, schedule: str
) -> _Launch:
    mode, _, seed = schedule.partition(":")
    launch = _Launch(entry=entry, schedule=_MODES[mode], seed=int(seed or 0))
    launch.buffers = (ctypes.c_void_p * len(addresses))(*addresses)
    launch.grid, launch.threads = (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*threads)
    return launch


def _counters(launch: _Launch, buffers: Sequence[Placed]) -> Counters:
    runtime = _runtime()
    read, written = ctypes.c_uint64(), ctypes.c_uint64()
    reads, writes = {}, {}
    for slot, buffer in enumerate(buffers):
        runtime.emu_bytes(slot, ctypes.byref(read), ctypes.byref(written))
        reads[buffer.name], writes[buffer.name] = read.value, written.value
    counts = dict(zip(_COUNTERS, launch.counters, strict=True))
    return Counters(
        **counts,
        threadgroup_bytes=runtime.emu_threadgroup_bytes(),
        bytes_read=reads,
        bytes_written=writes,
    )
