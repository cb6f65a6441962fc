"""A conversation as one growing prompt, cached in the radix tree up to the last answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sgl_mlx.cli.output import complete
from sgl_mlx.cli.pictures import PLACE, showing, with_pictures
from sgl_mlx.core import Completion, Generated, Prompt, SamplingParams, Text
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.pictures import flat_text
from sgl_mlx.lang.templates.derived_template import merge_system, takes_system


class Conversation:
    """Turns said so far, and the prompt parts that spell them.

    Args:
        backend: renders the turns by the model's own template, and answers.
        params: how every answer is sampled.
        system: what the system turn says; None leaves it to the template. If the template has no
            system turns, it heads the first question, as in programs.

    Raises:
        TokenizerError: when the model has no chat template, or a broken one.
    """

    def __init__(self, backend: Backend, params: SamplingParams, system: str | None = None) -> None:
        self._backend = backend
        self._params = params
        self._system = system
        backend.render_chat([{"role": "user", "content": "x"}], add_generation_prompt=True)
        self._has_system = takes_system(backend.render_chat)
        self.reset()

    def reset(self) -> None:
        """Forget all turns; what the engine cached of them stays."""
        self._messages: list[dict[str, str]] = []
        self._images: tuple[str, ...] = ()
        self._said: Prompt = ()
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})

    def ask(
        self, question: str, show: Callable[[str], None], images: Sequence[str] = ()
    ) -> Completion:
        """Answer a new user turn, which may hold pictures; show the answer piece by piece.

        An interrupted answer is kept as far as it came. A turn that cannot be answered, say for
        its length, is forgotten and its error raised.
        """
        messages = [*self._messages, {"role": "user", "content": showing(images, question)}]
        prompt = self._continued(messages, images)
        pieces: list[str] = []

        def keep(piece: str) -> None:
            pieces.append(piece)
            show(piece)

        try:
            answer = complete(self._backend, prompt, self._params, keep)
        except KeyboardInterrupt:
            self._keep(messages, images, prompt, Text("".join(pieces)))
            raise
        self._keep(messages, images, prompt, Generated(answer.text, answer.token_ids))
        return answer

    def _continued(self, messages: list[dict[str, str]], images: Sequence[str]) -> Prompt:
        """Return the prompt for these turns, with the tokens of past answers if they recur."""
        turns = messages if self._has_system else merge_system(messages)
        rendered = self._backend.render_chat(turns, add_generation_prompt=True)
        known = flat_text(self._said, PLACE)
        if rendered.startswith(known):
            return (*self._said, *with_pictures(rendered[len(known) :], images))
        return with_pictures(rendered, (*self._images, *images))

    def _keep(
        self,
        messages: list[dict[str, str]],
        images: Sequence[str],
        prompt: Prompt,
        answer: Text | Generated,
    ) -> None:
        self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        self._images += tuple(images)
        self._said = (*prompt, answer)
