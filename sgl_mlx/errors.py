"""Every error this package raises on purpose.

SglError
├── ProgramError             a program misuses the language
│   ├── UnknownVariableError     (also KeyError) a name no `gen` or `select` was given
│   ├── BatchError               rows of a batch raised; it has the states of all rows
│   ├── NotYetError              a construct this version does not have
│   └── GraphError               a compiled program is broken, or does not fit how it is used
├── BackendError             a backend is missing, unreachable or failed
│   └── EngineStoppedError       the engine was shut down, or its thread died
├── RequestError             one request is wrong; the engine goes on
│   ├── InvalidParamsError       (also ValueError) a sampling value out of range
│   │   └── RegexError               (also re.error) a regular expression that is broken
│   ├── PromptError              (also ValueError) empty, or cannot be computed
│   │   └── ContextLengthError       longer than context or pool
│   ├── ImageError               (also ValueError) a picture or video that cannot be read or used
│   └── RequestAborted           the request was cancelled
│       └── ProgramTimeout           (also TimeoutError) a program or request took too long
├── ModelError               a model cannot be loaded
│   ├── ModelNotFoundError       no such file, folder or repository, or no way to reach it
│   ├── CorruptModelError        a file is there but broken or incomplete
│   ├── TokenizerError           tokenizer or chat template missing or broken
│   └── UnsupportedModelError    an architecture or quantization we do not run
├── MemoryLimitError         model or pool do not fit; the message holds the arithmetic
├── BenchmarkError           a benchmark cannot run or report here
└── KernelError              a Metal kernel was asked for by force and is not there, or is wrong

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
    """A name was read that no `gen` or `select` of this state was given."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BatchError(ProgramError):
    """Bodies of a batch raised; all other rows ran to their end.

    Attributes:
        errors: what was raised, by the row's index.
        states: the states of all rows, in the order of the rows; empty if they were yielded.
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
    """A construct of the language that this version does not have."""


class GraphError(ProgramError):
    """A compiled program's file is broken, or its graph does not fit how it is used."""


class BackendError(SglError):
    """A backend is missing, unreachable or failed."""


class EngineStoppedError(BackendError):
    """The engine was shut down, or its thread died."""


class RequestError(SglError):
    """One request is wrong; the engine goes on."""


class InvalidParamsError(RequestError, ValueError):
    """A sampling value is out of range or of the wrong type."""


class RegexError(InvalidParamsError, re.error):
    """A regular expression that Python's `re` does not compile; `pos` is where it breaks."""

    def __init__(self, name: str, broken: re.error) -> None:
        text = f"{name} {broken.pattern!r}: {broken.msg}"
        re.error.__init__(self, text, broken.pattern, broken.pos)


class PromptError(RequestError, ValueError):
    """A prompt is empty, or longer than the context or the pool."""


class ContextLengthError(PromptError):
    """A prompt of `tokens` tokens, of which the context or the pool holds `limit`."""

    def __init__(self, message: str, tokens: int, limit: int) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit


class ImageError(RequestError, ValueError):
    """A picture or video that cannot be read, is too large, or that the model does not take."""


class RequestAborted(RequestError):
    """The request was cancelled before it finished."""


class ProgramTimeout(RequestAborted, TimeoutError):
    """A program, or one of its requests, took longer than its timeout."""


class ProgramCancelled(BaseException):
    """The run of a program was ended while its body went on; raised by its next word or read.

    No `Exception`, like `asyncio.CancelledError`, so that a body which catches errors ends too.
    Callers never see it: to them a cancelled run is a `RequestAborted`.
    """


class ModelError(SglError):
    """A model cannot be loaded."""


class ModelNotFoundError(ModelError):
    """No such file, folder or repository, or no way to reach it."""


class CorruptModelError(ModelError):
    """A model file is there but broken or incomplete."""


class TokenizerError(ModelError):
    """The tokenizer or its chat template is missing or broken."""


class UnsupportedModelError(ModelError):
    """An architecture or quantization that this package does not run."""


class MemoryLimitError(SglError):
    """The model or the KV pool does not fit; the message holds the arithmetic."""


class BenchmarkError(SglError):
    """A benchmark cannot run or report here: a tool is missing, a file cannot be written."""


class KernelError(SglError):
    """A Metal kernel was asked for by force and is not there, or is wrong."""
