"""Errors of the emulator.

EmulatorError
├── Unsupported      the text or the call is outside what the emulator covers
├── CompileError     the C++ compiler refuses the kernel; its words are the message
└── Trap             the kernel ran and did what a GPU would not forgive
"""

from __future__ import annotations


class EmulatorError(Exception):
    """Base of all errors of the emulator."""


class Unsupported(EmulatorError):
    """The kernel's text or the call uses what the emulator does not cover."""


class CompileError(EmulatorError):
    """The C++ compiler refuses the kernel."""


class Trap(EmulatorError):
    """A kernel broke a rule while it ran.

    `kind` is one of: "out of bounds", "write to an input", "data race", "uninitialised read",
    "divergent simd operation", "divergent barrier", "inactive lane", "undefined behaviour",
    "threadgroup memory", "stack overflow", "arithmetic", "deadlock", "endless loop",
    "schedule matters". `line` counts in the generated text (None when unknown).
    """

    def __init__(self, kind: str, what: str, *, kernel: str, line: int | None = None) -> None:
        self.kind, self.kernel, self.line = kind, kernel, line
        where = f", line {line}" if line else ""
        super().__init__(f"{kind}: {what} in {kernel}{where}")
