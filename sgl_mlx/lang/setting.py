"""`Setting`: the backend and the parameters with which a program runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.clock import checked_seconds
from sgl_mlx.lang.config import global_config, resolve_backend
from sgl_mlx.lang.scope import Scope, running_scope
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream
from sgl_mlx.lang.templates.chat_template import template_for
from sgl_mlx.lang.templates.turns import TurnWriter
from sgl_mlx.lang.transcript import Transcript

TIMEOUTS = ("timeout", "request_timeout")
"""Options of `run()` in seconds: the time limit of the program, and of each request."""


@dataclass(frozen=True)
class Setting:
    """The backend and parameters of a run.

    Attributes:
        backend: the backend to run on.
        defaults: the values of sampling parameters that a `gen` does not set itself.
        writer: returns the `TurnWriter`, which writes turns as the backend's chat template does.
        streaming: let readers see text while it is generated.
        timeout: the most seconds that the whole program may take; None for no limit.
        request_timeout: the most seconds that each request may take; None for no limit.
    """

    backend: Backend
    defaults: SamplingParams
    writer: Callable[[], TurnWriter]
    streaming: bool = False
    timeout: float | None = None
    request_timeout: float | None = None

    @classmethod
    def of(cls, backend: Any, options: Mapping[str, Any], streaming: bool = False) -> Setting:
        """Return the setting for the options of `run()`: sampling parameters and timeouts.

        Args:
            backend: the backend; None means the default backend.

        Raises:
            BackendError: no backend is given or set, or the object is no backend.
            InvalidParamsError: an option is unknown or out of range.
        """
        timeouts = {name: checked_seconds(name, options.get(name)) for name in TIMEOUTS}
        sampling = {name: value for name, value in options.items() if name not in TIMEOUTS}
        chosen = resolve_backend(backend)
        defaults = SamplingParams(
            skip_special_tokens=global_config.skip_special_tokens_in_output,
            token_healing=True,  # where it helps; see `interpreter`
        )
        writer = cache(partial(template_for, chosen))
        return cls(chosen, defaults.override(**sampling).validate(), writer, streaming, **timeouts)

    def new_state(self, scope: Scope | None = None) -> ProgramState:
        """Return a new empty state.

        Cancelling `scope` cancels the state; None means the scope of the calling program.
        """
        stream = Stream(
            self.backend,
            Transcript(self.writer),
            self.defaults,
            self.streaming,
            scope or running_scope(),
            self.request_timeout,
        )
        return ProgramState(stream)
