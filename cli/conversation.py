"""A conversation as one growing prompt: each turn reuses the KV cache of the turns before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sgl_mlx.cli.output import complete
from sgl_mlx.cli.pictures import PLACE, showing, with_pictures
from sgl_mlx.core import Completion, Generated, Prompt, SamplingParams, Text
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.pictures import flat_text
from sgl_mlx.lang.templates.derived_template import merge_system, takes_system


class Conversation:
    """The turns of a conversation, and the prompt that they make.

    Args:
        backend: renders the turns with the model's chat template, and generates the answers.
        params: sampling parameters of every answer.
        system: text of the system turn; None leaves the system turn to the template. If the
            template has no system turns, the text is put before the first question.

    Raises:
        TokenizerError: the model has no chat template, or the template is broken.
    """

    def __init__(self, backend: Backend, params: SamplingParams, system: str | None = None) -> None:
        self._backend = backend
        self._params = params
        self._system = system
        backend.render_chat([{"role": "user", "content": "x"}], add_generation_prompt=True)
        self._has_system = takes_system(backend.render_chat)
        self.reset()

    def reset(self) -> None:
        """Forget all turns; the engine keeps their KV cache."""
        self._messages: list[dict[str, str]] = []
        self._images: tuple[str, ...] = ()
        self._said: Prompt = ()
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})

    def ask(
        self, question: str, show: Callable[[str], None], images: Sequence[str] = ()
    ) -> Completion:
        """Generate and return the answer to a question; add both to the conversation.

        After Ctrl-C the text generated so far becomes the answer, and KeyboardInterrupt is raised.
        After any other error, such as a prompt that is too long, the question is not added.

        Args:
            show: called with each new piece of the answer.
            images: files of the pictures in the question.
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
        """Return the prompt for these turns; it reuses the tokens of past answers if possible.

        Args:
            messages: all turns.
            images: pictures of the last turn.
        """
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
