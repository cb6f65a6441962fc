"""`score`: scores of possible continuations of a state, without appending any of them."""

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
    """Return the decision that `select` would take after the state's text; append nothing.

    Waits until the state's text is generated and the choices are scored.

    Args:
        choices: the texts to choose from.
        choices_method: the way to compare choices, as in `select`.

    Returns:
        The chosen text (`decision`) and `meta_info`, whose lists `normalized_prompt_logprobs` and
        `input_token_logprobs` have one item for each choice.

    Raises:
        ProgramError: `choices` is empty, a choice is empty or no text, or the method is unknown.
        Exception: an earlier error of the state, or the error of the backend.
    """
    checked = checked_choices("score()", choices, choices_method)
    state.sync()
    stream = state.stream_executor
    transcript = stream.transcript.fork()
    transcript.settle()
    unconditional = choices_method.requires_unconditional_logprobs
    future = stream.backend.score(transcript.prompt(), checked, unconditional)
    return choices_method.of(answer_of(future))
