"""The backend and parameters that a program runs with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.config import global_config, resolve_backend
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream
from sgl_mlx.lang.templates.chat_template import template_for
from sgl_mlx.lang.templates.turns import TurnWriter
from sgl_mlx.lang.transcript import Transcript


@dataclass(frozen=True)
class Setting:
    """A backend, the sampling parameters for every `gen`, and the writer of turns.

    `writer` derives the writer from the backend's chat template at the first turn.
    """

    backend: Backend
    defaults: SamplingParams
    writer: Callable[[], TurnWriter]
    streaming: bool = False

    @classmethod
    def of(cls, backend: Any, sampling: Mapping[str, Any], streaming: bool = False) -> Setting:
        """Resolve the backend and check the parameters.

        Raises:
            BackendError: without a backend.
            InvalidParamsError: for a sampling value out of range.
        """
        chosen = resolve_backend(backend)
        defaults = SamplingParams(
            skip_special_tokens=global_config.skip_special_tokens_in_output,
            token_healing=True,  # where it helps; see `interpreter`
        )
        writer = cache(partial(template_for, chosen))
        return cls(chosen, defaults.override(**sampling).validate(), writer, streaming)

    def new_state(self) -> ProgramState:
        transcript = Transcript(self.writer)
        return ProgramState(
            Stream(self.backend, transcript, self.defaults, self.streaming, self.streaming)
        )
