"""The arguments of `Engine.generate`: prompts in any of their forms, and parameters for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError, PromptError
from sgl_mlx.runtime.request.options import RequestOptions, take_keywords
from sgl_mlx.runtime.request.prepare import Prepared, Preparer, Source

PromptInput = str | Sequence[str] | None
TokenInput = Sequence[int] | Sequence[Sequence[int]] | None
Params = SamplingParams | Mapping[str, Any] | None


@dataclass(frozen=True)
class Inputs:
    """The requests of one call of `generate`: a row for each prompt.

    Attributes:
        single: the call gave one prompt, not a list.
    """

    sources: Sequence[Source]
    params: Sequence[SamplingParams]
    options: Sequence[RequestOptions]
    single: bool

    @classmethod
    def of(
        cls,
        preparer: Preparer,
        prompt: PromptInput,
        sampling_params: Params | Sequence[Params],
        input_ids: TokenInput,
        image_data: Any,
        options: Mapping[str, Any],
    ) -> Inputs:
        """Check the arguments of a call; see `Engine.generate`."""
        changes = dict(options)
        keywords = take_keywords(changes)
        sources, single = _sources(preparer, prompt, input_ids, image_data)
        params = _params_for(sampling_params, len(sources), changes)
        return cls(sources, params, RequestOptions.each(keywords, len(sources), single), single)

    def prepare(self, preparer: Preparer) -> list[Prepared]:
        """Prepare every row; raises as `Preparer.prepare`."""
        rows = zip(self.sources, self.params, strict=True)
        return [preparer.prepare(source.encode(), params) for source, params in rows]


def _sources(
    preparer: Preparer, prompt: PromptInput, input_ids: TokenInput, image_data: Any
) -> tuple[list[Source], bool]:
    if (prompt is None) == (input_ids is None):
        raise PromptError("give either prompt or input_ids")
    if image_data is not None and prompt is None:
        raise PromptError("image_data needs a prompt of text, which says where pictures stand")
    if isinstance(prompt, str):
        return [preparer.of_text(prompt, _images(image_data))], True
    if prompt is not None:
        rows = [None] * len(prompt) if image_data is None else image_data
        if not isinstance(rows, (list, tuple)) or len(rows) != len(prompt):
            raise PromptError(
                f"image_data must be a list with one entry for each of {len(prompt)} prompts"
            )
        pairs = zip(prompt, rows, strict=True)
        return [preparer.of_text(_text(text), _images(row)) for text, row in pairs], False
    assert input_ids is not None
    single = not len(input_ids) or not hasattr(input_ids[0], "__len__")
    given: Any = [input_ids] if single else input_ids
    return [preparer.of_ids(row) for row in given], single


def _text(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be text, got {prompt!r:.80}; for token ids: input_ids")
    return prompt


def _images(given: Any) -> list[Any]:
    several = given if isinstance(given, (list, tuple)) else [given]
    return [image for image in several if image is not None]


def _params_for(
    given: Params | Sequence[Params], count: int, changes: Mapping[str, Any]
) -> list[SamplingParams]:
    """Return checked parameters for each of `count` prompts."""
    rows = list(given) if isinstance(given, Sequence) else [given] * count
    if len(rows) != count:
        raise InvalidParamsError(f"{len(rows)} sampling_params for {count} prompts")
    return [SamplingParams.of(row).override(**changes).validate() for row in rows]
