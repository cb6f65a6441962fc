"""The protocol between the language and whatever runs it.

A backend sees prompts (`sgl_mlx.core.Prompt`) and sampling parameters, never program states. The
runtime's `Engine` satisfies it without importing the language; `sgl_mlx.testing.ScriptedBackend`
replays strings; `sgl_mlx.lang.backends` holds those that speak to other servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, StreamEvent


@runtime_checkable
class Backend(Protocol):
    """A model that continues and scores prompts. Calls return at once; futures hold the answers.

    Cancelling a future that is not done aborts its request. Errors arrive through the future,
    except for `InvalidParamsError` and `NotYetError`, which the call itself may raise.
    """

    @property
    def model_name(self) -> str:
        """The model's path or id, as chat template names and messages need it."""
        ...

    @property
    def supports_parallel(self) -> bool:
        """True when a `Parallel` part joins the branches' KV instead of their text."""
        ...

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """Write the conversation as the model's own template does.

        Raises:
            TokenizerError: when the model has no chat template or it rejects the messages.
        """
        ...

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        """Continue a prompt `params.n` times.

        Args:
            on_event: called, from another thread, with what each sample adds. The texts of a
                sample's events joined are its completion's text, the last one has its finish
                reason, and all come before the future is done.
        """
        ...

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        """Return the log-probabilities of each choice after the prompt, in the order given."""
        ...

    def prefill(self, prompt: Prompt) -> Future[int]:
        """Compute the prompt ahead of requests that share it; resolves to the tokens cached."""
        ...

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """Have the prompt's KV at hand when a request for it comes, without delaying others.

        The future resolves to how many of its tokens are cached, possibly 0, and never fails;
        nobody needs to wait for it. What is cached already costs nothing.
        """
        ...

    def flush_cache(self) -> bool:
        """Forget all cached prefixes; return False when requests are running."""
        ...

    def get_server_info(self) -> dict[str, Any]:
        """Return model, limits and counters."""
        ...

    def shutdown(self) -> None:
        """Release everything; later calls raise `EngineStoppedError`."""
        ...
