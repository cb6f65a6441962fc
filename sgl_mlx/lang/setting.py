"""The backend and parameters that a program runs with."""

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
"""Options of `run()` in seconds: for the whole program, and for each request of it."""


@dataclass(frozen=True)
class Setting:
    """A backend, the sampling parameters for every `gen`, and the writer of turns.

    `writer` derives the writer from the backend's chat template at the first turn. `timeout` is
    the seconds that a run may take, `request_timeout` those of each question to the backend.
    """

    backend: Backend
    defaults: SamplingParams
    writer: Callable[[], TurnWriter]
    streaming: bool = False
    timeout: float | None = None
    request_timeout: float | None = None

    @classmethod
    def of(cls, backend: Any, options: Mapping[str, Any], streaming: bool = False) -> Setting:
        """Resolve the backend and check the options: sampling parameters and timeouts.

        Raises:
            BackendError: without a backend.
            InvalidParamsError: for a value out of range.
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
        """Return an empty state, which ends with `scope`, or else with the body that calls."""
        stream = Stream(
            self.backend,
            Transcript(self.writer),
            self.defaults,
            self.streaming,
            scope or running_scope(),
            self.request_timeout,
        )
        return ProgramState(stream)
