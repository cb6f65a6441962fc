"""The errors that this package raises.

SglError
├── ProgramError             a program misuses the language
│   ├── UnknownVariableError     (also KeyError) a variable was read that was never given a value
│   ├── BatchError               runs of a batch raised; has the states of all runs
│   ├── NotYetError              a feature that this version or this backend lacks
│   └── GraphError               a compiled program is broken, or does not fit how it is used
├── BackendError             a backend is missing, unreachable or failed
│   └── EngineStoppedError       the engine was shut down, or its thread died
├── RequestError             one request is wrong; the engine goes on
│   ├── InvalidParamsError       (also ValueError) a parameter out of range or of a wrong type
│   │   ├── LimitError               a request asks for more than a limit allows
│   │   └── RegexError               (also re.error) a regular expression that does not compile
│   ├── PromptError              (also ValueError) a prompt is empty, or the model cannot run it
│   │   └── ContextLengthError       a prompt is longer than the context or the KV pool
│   ├── ImageError               (also ValueError) a picture or video that cannot be read or used
│   └── RequestAborted           the request was cancelled
│       └── ProgramTimeout           (also TimeoutError) a program or request took too long
├── ModelError               a model cannot be loaded
│   ├── ModelNotFoundError       no such file, folder or repository, or no way to reach it
│   ├── CorruptModelError        a file is there but broken or incomplete
│   ├── TokenizerError           tokenizer or chat template missing or broken
│   └── UnsupportedModelError    an architecture or quantization that this package does not run
├── MemoryLimitError         the model or the KV pool does not fit; the message has the sizes
├── BenchmarkError           a benchmark cannot run or report
└── KernelError              a kernel cannot be built or used, or its results are wrong

ProgramCancelled, a BaseException, ends the body of a cancelled program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "BackendError",
    "BatchError",
    "BenchmarkError",
    "ContextLengthError",
    "CorruptModelError",
    "EngineStoppedError",
    "ImageError",
    "InvalidParamsError",
    "KernelError",
    "LimitError",
    "MemoryLimitError",
    "ModelError",
    "ModelNotFoundError",
    "NotYetError",
    "ProgramCancelled",
    "ProgramError",
    "ProgramTimeout",
    "PromptError",
    "RegexError",
    "RequestAborted",
    "RequestError",
    "SglError",
    "TokenizerError",
    "UnknownVariableError",
    "UnsupportedModelError",
]

_ROWS_NAMED = 10


class SglError(Exception):
    """Base of all errors of this package."""


class ProgramError(SglError):
    """A program misuses the language."""


class UnknownVariableError(ProgramError, KeyError):
    """A program read a variable that nothing in its state sets."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BatchError(ProgramError):
    """Some runs of a batch raised an exception; all other runs went on to their end.

    Attributes:
        errors: the exceptions, by the index of the run in the batch.
        states: the states of all runs, in the order of the batch; empty if the batch was run as a
            generator, which has yielded the states before it raises this error.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], rows: int, states: Sequence[Any] = ()
    ) -> None:
        self.errors = dict(errors)
        self.states = list(states)
        first = min(self.errors)
        which = ", ".join(map(str, sorted(self.errors)[:_ROWS_NAMED]))
        more = ", ..." if len(self.errors) > _ROWS_NAMED else ""
        error = self.errors[first]
        super().__init__(
            f"{len(self.errors)} of {rows} rows raised: {which}{more}; the others ran to their "
            f"end. Row {first}: {type(error).__name__}: {error}"
        )


class NotYetError(ProgramError):
    """A program or request uses a feature that this version or this backend does not have."""


class GraphError(ProgramError):
    """A compiled program's file is broken, or its graph does not fit the arguments or options."""


class BackendError(SglError):
    """A backend is missing, unreachable or failed."""


class EngineStoppedError(BackendError):
    """The engine was shut down, or its thread died or hangs."""


class RequestError(SglError):
    """One request is wrong, or was cancelled; the engine goes on with other requests."""


class InvalidParamsError(RequestError, ValueError):
    """A parameter is unknown, out of range or of the wrong type."""


class LimitError(InvalidParamsError):
    """A request asks for more than a limit allows; `limit` is its name, a field of `Limits`."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


class RegexError(InvalidParamsError, re.error):
    """A regular expression that Python's `re` does not compile; `pos` is the place of the fault."""

    def __init__(self, name: str, broken: re.error) -> None:
        text = f"{name} {broken.pattern!r}: {broken.msg}"
        re.error.__init__(self, text, broken.pattern, broken.pos)


class PromptError(RequestError, ValueError):
    """A prompt is empty, too long, of a wrong type, or has parts that the model cannot run."""


class ContextLengthError(PromptError):
    """A prompt has `tokens` tokens, but the context or the KV pool holds only `limit`."""

    def __init__(self, message: str, tokens: int, limit: int) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit


class ImageError(RequestError, ValueError):
    """A picture or video cannot be read, is too large, or does not suit the model."""


class RequestAborted(RequestError):
    """The request was cancelled before it finished."""


class ProgramTimeout(RequestAborted, TimeoutError):
    """A program, or one of its requests, took longer than its timeout."""


class ProgramCancelled(BaseException):
    """Cancellation of a program: the next append to a state or read of a state raises this.

    So the function of the program ends.

    This is a `BaseException`, like `asyncio.CancelledError`, so that `except Exception` in the
    program does not catch it. The caller of the program gets `RequestAborted` or
    `ProgramTimeout` instead.
    """


class ModelError(SglError):
    """A model cannot be loaded."""


class ModelNotFoundError(ModelError):
    """A model's file, folder or repository does not exist, or cannot be reached."""


class CorruptModelError(ModelError):
    """A model file exists, but is broken or incomplete."""


class TokenizerError(ModelError):
    """The tokenizer or its chat template is missing or broken."""


class UnsupportedModelError(ModelError):
    """A model has an architecture or quantization that this package does not run."""


class MemoryLimitError(SglError):
    """The model, its KV or its recurrent state does not fit into memory; the message has sizes."""


class BenchmarkError(SglError):
    """A benchmark cannot run or report.

    For example, a tool is missing, a file cannot be read or written, a given name or data set is
    wrong, or a compared system fails (`PeerError`).
    """


class KernelError(SglError):
    """A Metal or CPU kernel cannot be built or used, or its results are wrong."""
