"""The arguments of `Engine.generate`: prompts in any of their forms, and parameters for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx import bounds
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
    if input_ids is not None:
        rows, single = _token_rows(input_ids)
        return [preparer.of_ids(row) for row in rows], single
    if isinstance(prompt, str):
        return [preparer.of_text(_text("the prompt", prompt), _images(image_data))], True
    texts = bounds.listed(prompt)
    if texts is None:
        raise _no_text("the prompt", prompt)
    pictures = [None] * len(texts) if image_data is None else bounds.listed(image_data)
    if pictures is None or len(pictures) != len(texts):
        raise PromptError(
            f"image_data must be a list with one entry for each of {len(texts)} prompts"
        )
    pairs = zip(texts, pictures, strict=True)
    return [
        preparer.of_text(_text(f"prompt {i}", text), _images(row))
        for i, (text, row) in enumerate(pairs)
    ], False


def _token_rows(given: object) -> tuple[list[list[Any]], bool]:
    """Return rows of token ids, not yet checked, and whether one row was given alone."""
    rows = bounds.listed(given)
    if rows is None:
        bounds.refuse("input_ids", given, "a list of token ids, or a list of such", PromptError)
    nested = bool(rows) and bounds.listed(rows[0]) is not None
    if not nested:
        return [rows], True
    found = []
    for i, row in enumerate(rows):
        ids = bounds.listed(row)
        if ids is None:
            bounds.refuse(f"input_ids[{i}]", row, "a list, as the first row is", PromptError)
        found.append(ids)
    return found, False


def _text(name: str, prompt: object) -> str:
    if not isinstance(prompt, str):
        raise _no_text(name, prompt)
    return bounds.text(name, prompt, PromptError)


def _no_text(name: str, given: object) -> PromptError:
    """Return the error for a prompt that is no text, with what is meant for such a value."""
    if isinstance(given, (bytes, bytearray, memoryview)):
        remedy = "decode bytes first, such as prompt.decode()"
    elif isinstance(given, Mapping):
        remedy = "for chat messages: engine.render_chat(messages, add_generation_prompt=True)"
    else:
        remedy = "for token ids: input_ids"
    return PromptError(f"{name} must be text, got {bounds.shown(given)}; {remedy}")


def _images(given: Any) -> list[Any]:
    """Return the pictures of one prompt; an array is one picture, not a list of them."""
    several = given if isinstance(given, (list, tuple)) else [given]
    return [image for image in several if image is not None]


def _params_for(
    given: Params | Sequence[Params], count: int, changes: Mapping[str, Any]
) -> list[SamplingParams]:
    """Return checked parameters for each of `count` prompts."""
    rows: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(rows) != count:
        raise InvalidParamsError(f"{len(rows)} sampling_params for {count} prompts")
    return [SamplingParams.of(row).override(**changes).validate() for row in rows]
