"""The constant prefix of a program: found by running the program once without a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import takewhile
from typing import Any, Protocol

from sgl_mlx.core import SamplingParams, Text, prompt_text
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream
from sgl_mlx.lang.templates.turns import TurnWriter
from sgl_mlx.lang.transcript import Transcript

_UNKNOWN = "\ue000{}\ue001"
_FIRST_UNKNOWN = re.compile("\ue000.*", re.DOTALL)


class _EndOfPrefix(Exception):
    """Raised when the program makes its first request to the model: the prefix ends there."""


class _Program(Protocol):
    """The part of a `Program` that `constant_prefix` reads."""

    func: Callable[..., Any]
    arg_names: list[str]
    bind_arguments: dict[str, Any]


class _NoModel:
    """A backend without a model: every request raises `_EndOfPrefix`, which stops the stream."""

    model_name = "none"
    supports_parallel = False

    def _end(self, *_: Any) -> Future[Any]:
        raise _EndOfPrefix

    submit = score = prefill = render_chat = flush_cache = get_server_info = shutdown = _end


def constant_prefix(program: _Program, writer: Callable[[], TurnWriter]) -> str:
    """Return the program's prompt up to the first argument, picture or request to the model.

    The program's function is called once with placeholder texts as arguments. If it raises an
    error, the prefix is the text that it appended until then.

    Args:
        writer: returns the `TurnWriter` of the backend that the prefix is for.
    """
    stream = Stream(_NoModel(), Transcript(writer), SamplingParams())  # type: ignore[arg-type]
    arguments = {name: _UNKNOWN.format(name) for name in program.arg_names}
    with suppress(Exception):
        program.func(ProgramState(stream), **{**arguments, **program.bind_arguments})
    known = takewhile(lambda part: isinstance(part, Text), stream.transcript.prompt())
    return _FIRST_UNKNOWN.sub("", prompt_text(tuple(known)))
