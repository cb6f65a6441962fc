"""`Backend`: the protocol through which the language uses a model.

A backend gets prompts (`sgl_mlx.core.Prompt`) and sampling parameters, never program states.
Backends are the runtime's `Engine`, which does not import the language; the test double
`sgl_mlx.testing.ScriptedBackend`; and the clients of other servers in `sgl_mlx.lang.backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, StreamEvent


@runtime_checkable
class Backend(Protocol):
    """A model that continues and scores prompts. Calls that use the model return futures at once.

    Cancelling a future that is not done aborts its request. Errors of a request are raised by its
    future. A call itself may raise errors of its arguments, such as `InvalidParamsError`,
    `NotYetError` or `ImageError`.
    """

    @property
    def model_name(self) -> str:
        """The model's path or id, for messages and for choosing a chat template by name."""
        ...

    @property
    def supports_parallel(self) -> bool:
        """True if the backend takes `Parallel` parts, and reuses the KV cache of their branches."""
        ...

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """Return a conversation as the text that the model's own chat template makes of it.

        With `add_generation_prompt`, the text ends with the beginning of the assistant's answer.

        Raises:
            TokenizerError: the model has no chat template, or the template rejects the messages.
        """
        ...

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        """Continue a prompt; the future gives `params.n` samples.

        Args:
            on_event: called from another thread with each new piece of each sample, before the
                future is done. The joined texts of a sample's events are the text of its
                completion; the last event has the finish reason.
        """
        ...

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        """Score each choice as a continuation of the prompt: log-probabilities of its tokens.

        The future gives the scores in the order of `choices`. With `unconditional`, the choices
        are also scored without the prompt.
        """
        ...

    def prefill(self, prompt: Prompt) -> Future[int]:
        """Prefill a prompt for later requests; the future gives how many tokens are cached."""
        ...

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """Cache the prompt's KV if possible, for a later request, without delaying other requests.

        The future never fails, and nobody has to wait for it. It gives the number of the prompt's
        tokens that are cached, possibly 0. A prompt that is already cached costs nothing.
        """
        ...

    def flush_cache(self) -> bool:
        """Drop all cached prefixes and return True.

        Returns False if requests are running or the backend has no cache.
        """
        ...

    def get_server_info(self) -> dict[str, Any]:
        """Return the model's name, limits and counters."""
        ...

    def shutdown(self) -> None:
        """Stop the backend and release its resources.

        Later calls fail; an engine raises `EngineStoppedError` for them.
        """
        ...
