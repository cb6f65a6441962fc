"""Preparation of requests: tokens, pictures, grammars, and checks against the model's limits.

Preparation that may take long runs on worker threads, so that it blocks neither the caller's
event loop nor the engine thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeGuard, cast

from sgl_mlx import bounds
from sgl_mlx.core import (
    Generated,
    Image,
    Parallel,
    Part,
    Prompt,
    SamplingParams,
    Shift,
    Text,
    Video,
)
from sgl_mlx.errors import ContextLengthError, InvalidParamsError, PromptError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.assembly import RunnableModel
from sgl_mlx.runtime.constraints.healing import NOTHING_TAKEN, Healing, TakenBack
from sgl_mlx.runtime.request.encode import Encoded, encode
from sgl_mlx.runtime.scheduler.sequence import Constraint

_SMALL = 2000
_LARGE = 1 << 30

Where = Literal["here", "prompts", "grammars"]
"""Where requests are prepared: on the caller's thread, or on one of two kinds of worker threads."""


class Size(NamedTuple):
    """Numbers of characters or token ids, of parts in all branches, and of pictures and videos."""

    characters: int
    parts: int = 1
    images: int = 0

    @property
    def effort(self) -> int:
        """Time that encoding takes, measured in characters; `_LARGE` if there are pictures."""
        return _LARGE if self.images else self.characters

    @classmethod
    def of(cls, prompt: Prompt) -> Size:
        """Measure a prompt.

        Raises:
            PromptError: the prompt is not a tuple or list of parts, or a part is wrong.
        """
        characters = parts = images = 0
        for part in _parts(prompt):
            parts += 1
            if isinstance(part, (Text, Generated)):
                characters += len(bounds.text("the prompt", part.text, PromptError))
            images += isinstance(part, (Image, Video))
        return cls(characters, parts, images)


@dataclass(frozen=True)
class Source:
    """A prompt that is not encoded yet.

    Attributes:
        encode: encodes the prompt and prepares its pictures; raises `PromptError` and `ImageError`.
        size: number of characters or token ids, as a measure of the time that `encode` takes; a
            very large number if there are pictures, which are slow to prepare.
    """

    encode: Callable[[], Encoded]
    size: int


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to start.

    Attributes:
        prompt: the encoded prompt, without the tokens of `taken_back`.
        params: sampling parameters, checked and bounded by the model's limits.
        constraints: one entry for each sample; None for a sample without a constraint.
        taken_back: end of the prompt that the model generates again (token healing).
    """

    prompt: Encoded
    params: SamplingParams
    constraints: tuple[Constraint | None, ...]
    taken_back: TakenBack = NOTHING_TAKEN

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the whole prompt, including the tokens of `taken_back`."""
        return self.prompt.total + len(self.taken_back.tokens)


class Preparer:
    """The preparer of one model's requests: encodes and checks them. Usable from any thread."""

    def __init__(self, model: RunnableModel, limits: Limits) -> None:
        self.limits = limits
        self._model = model
        self._can_heal = False

    # -- prompts ------------------------------------------------------------------------------

    def of_prompt(self, prompt: Prompt | Sequence[int]) -> Source:
        """Return the source of a prompt given as parts or as token ids.

        Raises:
            PromptError: the prompt is neither parts nor token ids, or one of its parts is wrong.
                Token ids are checked later, by `Source.encode`.
        """
        if is_ids(prompt):
            return self.of_ids(prompt)
        parts = cast(Prompt, prompt)
        size = Size.of(parts)
        self._check(size)
        return Source(lambda: self._encode(parts), size.effort)

    def of_text(self, text: str, images: Sequence[object]) -> Source:
        """Return the source of a text with pictures.

        Each picture mark of the model in the text, usually `<image>`, stands for the next picture
        in `images`; if `images` is empty, the text is plain.
        """
        if not images:
            return self.of_prompt((Text(text),))
        self._check(Size(len(text), 1 + 2 * len(images), len(images)))
        pictures = self._model.pictures
        return Source(lambda: self._encode(pictures.prompt(text, images)), _LARGE)

    def of_ids(self, ids: Sequence[int]) -> Source:
        """Return the source of a prompt given as token ids, which `Source.encode` checks."""
        self._check(Size(len(ids)))
        return Source(lambda: self._of_ids(ids), len(ids))

    def _check(self, size: Size) -> None:
        """Raise `LimitError` if a prompt of this size is over a limit."""
        limits, check, characters = self.limits, bounds.within, size.characters
        check(limits, "max_prompt_chars", characters, f"the prompt has {characters:,} characters")
        check(limits, "max_parts", size.parts, f"the prompt has {size.parts:,} parts")
        check(
            limits, "max_images", size.images, f"the prompt has {size.images:,} pictures and videos"
        )

    def where(self, sources: Iterable[Source], params: Iterable[SamplingParams]) -> Where:
        """Return where to prepare these prompts.

        That is "here" if it takes about a millisecond or less, "grammars" if a grammar is to be
        compiled.
        """
        params = list(params)
        if any(p.constrained and not self._model.grammars.has(p) for p in params):
            return "grammars"
        small = sum(source.size for source in sources) <= _SMALL
        healed = self._can_heal or not any(p.token_healing for p in params)
        return "here" if small and healed else "prompts"

    def _encode(self, prompt: Prompt) -> Encoded:
        model = self._model
        return encode(prompt, model.tokenizer, model.pictures, ends=model.recurrent)

    def _of_ids(self, ids: Sequence[int]) -> Encoded:
        if not len(ids):
            raise PromptError("the prompt is empty: it needs at least one token")
        size = self._model.vocabulary
        return Encoded(tuple(_token(token, size) for token in ids))

    # -- requests -----------------------------------------------------------------------------

    def prepare(self, prompt: Encoded, params: SamplingParams) -> Prepared:
        """Check a request against the model, and compile its grammar.

        Raises:
            ContextLengthError: the prompt does not fit into the context or the KV pool.
            PromptError: the prompt has parallel branches or a position gap, and the model has
                recurrent layers or runs on the dense path.
            InvalidParamsError: a parameter does not fit the prompt, or a grammar is invalid.
        """
        if (prompt.after or prompt.gap) and not self._model.joins:
            why = "runs one request at a time, by positions that count from 0"
            if self._model.recurrent:
                why = "has recurrent layers, whose state depends on the order of all tokens before"
            raise PromptError(
                f"{self._model.name} {why}. "
                "It cannot put branches side by side or skip positions; join by text, without "
                "position_ids_offset"
            )
        params = self._bounded(prompt, params)
        taken_back = self._taken_back(prompt, params)
        if taken_back.tokens:
            prompt = replace(prompt, tokens=prompt.tokens[: -len(taken_back.tokens)])
        made = (self._constraint(params, taken_back) for _ in range(params.n))
        return Prepared(prompt, params, tuple(made), taken_back)

    def check_length(self, prompt: Encoded) -> None:
        """Raise `ContextLengthError` if a prompt exceeds the context or the KV pool."""
        context, slots = self._model.context_length, self._model.slots
        if prompt.total > min(context, slots) or prompt.end > context:
            raise ContextLengthError(
                f"the prompt has {prompt.total} tokens; the context holds {context} and the KV "
                f"pool {slots}",
                prompt.total,
                min(context, slots),
            )

    def _bounded(self, prompt: Encoded, params: SamplingParams) -> SamplingParams:
        self.check_length(prompt)
        start = params.logprob_start_len
        if start is not None and start > len(prompt.tokens):
            raise InvalidParamsError(
                f"logprob_start_len must be at most {len(prompt.tokens)}, the number of the "
                f"prompt's tokens, got {start}"
            )
        if params.dtype in ("int", "float"):  # as in SGLang; a number ends where it is complete
            params = replace(params, stop=(*params.stop, " ", "\n"))
        room = max(min(self._model.context_length, self._model.slots) - prompt.total, 0)
        tokens = min(params.max_new_tokens, room)
        return replace(
            params, max_new_tokens=tokens, min_new_tokens=min(params.min_new_tokens, tokens)
        )

    def _taken_back(self, prompt: Encoded, params: SamplingParams) -> TakenBack:
        """Return the end of the prompt that the model generates again, or `NOTHING_TAKEN`."""
        if not params.token_healing or params.constrained or params.max_new_tokens == 0:
            return NOTHING_TAKEN
        found = self._model.spellings.heals(prompt.tokens[prompt.sealed :])
        self._can_heal = True
        return found if found and len(found.tokens) < len(prompt.tokens) else NOTHING_TAKEN

    def _constraint(self, params: SamplingParams, taken_back: TakenBack) -> Constraint | None:
        if taken_back.text:
            return Healing(self._model.spellings, taken_back.text.encode())
        return self._model.grammars.constraint(params) if params.constrained else None


def is_ids(prompt: Prompt | Sequence[int]) -> TypeGuard[Sequence[int]]:
    """Return True if a prompt is a non-empty list of token ids; only its first item is checked."""
    listed = isinstance(prompt, (list, tuple)) or bool(getattr(prompt, "ndim", 0))
    return listed and len(prompt) > 0 and hasattr(prompt[0], "__index__")


def _token(token: object, size: int) -> int:
    found = bounds.whole(token)
    if found is None or not 0 <= found < size:
        raise PromptError(
            f"token id {bounds.shown(token)} is not in the vocabulary (0 to {size - 1})"
        )
    return found


def _parts(prompt: Prompt) -> Iterator[Part]:
    """Yield all parts, also those of branches; `Parallel` parts before the parts in them."""
    waiting = [prompt]
    while waiting:
        prompt = waiting.pop()
        if not isinstance(prompt, (tuple, list)):
            bounds.refuse("a prompt", prompt, "a tuple of parts, such as Text", PromptError)
        for part in prompt:
            if not isinstance(part, (Text, Generated, Image, Video, Shift, Parallel)):
                bounds.refuse("a part of a prompt", part, "a Text, Image or the like", PromptError)
            yield part
            waiting += part.branches if isinstance(part, Parallel) else ()
