"""Scores of possible continuations, without appending any."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_mlx.lang.choices import (
    ChoicesDecision,
    ChoicesSamplingMethod,
    token_length_normalized,
)
from sgl_mlx.lang.scope import answer_of
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.words import checked_choices


def score(
    state: ProgramState,
    choices: Sequence[str],
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> ChoicesDecision:
    """Decide as `select` would after the text so far, without appending the choice.

    Waits for the text and for the scores. `meta_info` of the result holds, for each choice in
    the given order, `normalized_prompt_logprobs` and `input_token_logprobs`.

    Raises:
        ProgramError: for no choice, an empty choice, one that is not text, or an unknown method.
            An earlier error of the state is raised again.
    """
    checked = checked_choices("score()", choices, choices_method)
    state.sync()
    stream = state.stream_executor
    transcript = stream.transcript.fork()
    transcript.settle()
    unconditional = choices_method.requires_unconditional_logprobs
    future = stream.backend.score(transcript.prompt(), checked, unconditional)
    return choices_method.of(answer_of(future))
