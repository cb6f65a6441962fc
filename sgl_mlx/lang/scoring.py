"""Scores of possible continuations, for programs that want the numbers and not the text."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_mlx.lang.binding import result_of
from sgl_mlx.lang.choices import (
    ChoicesDecision,
    ChoicesSamplingMethod,
    token_length_normalized,
)
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.words import checked_choices


def score(
    state: ProgramState,
    choices: Sequence[str],
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> ChoicesDecision:
    """What `select` would decide after the text so far, which stays as it is.

    Waits for the text and for the scores. `meta_info` of the result holds, for each choice in
    the order given, `normalized_prompt_logprobs` and `input_token_logprobs`.

    Raises:
        ProgramError: when there is no choice, a choice is no non-empty text, or the method is
            unknown; and what went wrong in the state before.
    """
    checked = checked_choices("score()", choices, choices_method)
    state.sync()
    stream = state.stream_executor
    transcript = stream.transcript.fork()
    transcript.settle()
    unconditional = choices_method.requires_unconditional_logprobs
    future = stream.backend.score(transcript.prompt(), checked, unconditional)
    return choices_method.of(result_of(future))
