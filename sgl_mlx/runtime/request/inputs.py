"""Checks of the arguments of `Engine.generate`: prompts, sampling parameters and keywords."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, cast

from sgl_mlx import bounds
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError, PromptError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.request.prepare import Prepared, Preparer, Source

PromptInput = str | Sequence[str] | None
TokenInput = Sequence[int] | Sequence[Sequence[int]] | None
Params = SamplingParams | Mapping[str, Any] | None
_PRIORITY = bounds.optional(bounds.integer(-bounds.INT32, bounds.INT32))
_SECONDS = bounds.optional(bounds.seconds)


class RequestKeywords(TypedDict, total=False):
    """Keywords of `Engine.generate`, `async_generate` and `submit`.

    Attributes:
        rid: the request's id, for `Engine.abort` and as `meta_info["id"]`; a list of ids for a
            list of prompts. No two requests in flight may have the same id. With `n > 1`, sample
            i has the id `rid-i`.
        priority: requests with a higher priority are admitted first; 0 by default.
        timeout: seconds after which the request is aborted; not together with `deadline`.
        deadline: time on `time.monotonic`'s clock at which the request is aborted.
        extra_key: name of the request's part of the prefix cache. A request finds only prefixes
            that requests with the same `extra_key` computed; empty by default.
    """

    rid: str | Sequence[str] | None
    priority: int
    timeout: float | None
    deadline: float | None
    extra_key: str | None


@dataclass(frozen=True)
class RequestOptions:
    """The checked keywords of one request; see `RequestKeywords`."""

    rid: str | None = None
    priority: int = 0
    deadline: float | None = None
    extra_key: str = ""

    @classmethod
    def each(cls, given: RequestKeywords, count: int, single: bool) -> list[RequestOptions]:
        """Check the keywords of a call and return the options of its `count` requests.

        Each request gets an id, a random one if no `rid` is given.

        Args:
            single: True if the call has one prompt, so that `rid` is one text, not a list.

        Raises:
            InvalidParamsError: a keyword has a wrong value, or both `timeout` and `deadline` are
                given.
        """
        extra_key = bounds.text("extra_key", given.get("extra_key") or "")
        priority = _PRIORITY("priority", given.get("priority")) or 0
        shared = cls(None, priority, _deadline(given), extra_key)
        rid = given.get("rid")
        if rid is None:
            return [replace(shared, rid=uuid.uuid4().hex) for _ in range(count)]
        return [replace(shared, rid=checked) for checked in _rids(rid, count, single)]


def _take_keywords(options: dict[str, Any]) -> RequestKeywords:
    """Move the keywords of `RequestKeywords` out of `options`, leaving the sampling parameters."""
    names = RequestKeywords.__annotations__.keys() & options.keys()
    return cast(RequestKeywords, {name: options.pop(name) for name in names})


@dataclass(frozen=True)
class Inputs:
    """The checked arguments of one call of `generate`.

    Attributes:
        sources: the prompts, not yet encoded.
        params: sampling parameters, one for each prompt.
        options: keywords, one for each prompt.
        single: True if the call gave one prompt, not a list.
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
        """Check the arguments of `Engine.generate`; the prompts are encoded later, by `prepare`.

        Args:
            options: sampling parameters by name, and the keywords of `RequestKeywords`.

        Raises:
            InvalidParamsError, PromptError: an argument is wrong.
        """
        changes = dict(options)
        keywords = _take_keywords(changes)
        sources, single = _sources(preparer, prompt, input_ids, image_data)
        params = _params_for(sampling_params, len(sources), changes, preparer.limits)
        return cls(sources, params, RequestOptions.each(keywords, len(sources), single), single)

    def only(self) -> Inputs:
        """Return these inputs if they hold exactly one prompt, as a streamed call needs.

        Raises:
            InvalidParamsError: there are no prompts, or more than one.
        """
        if len(self.sources) != 1:
            raise InvalidParamsError(f"stream=True takes one prompt, got {len(self.sources)}")
        return self

    def prepare(self, preparer: Preparer) -> list[Prepared]:
        """Encode and check every prompt; raises as `Source.encode` and `Preparer.prepare` do."""
        rows = zip(self.sources, self.params, strict=True)
        return [preparer.prepare(source.encode(), params) for source, params in rows]


def _sources(
    preparer: Preparer, prompt: PromptInput, input_ids: TokenInput, image_data: Any
) -> tuple[list[Source], bool]:
    if (prompt is None) == (input_ids is None):
        given = "neither" if prompt is None else "both"
        raise PromptError(f"give either prompt or input_ids, got {given}")
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
            f"image_data must be a list with one entry for each of {len(texts)} prompts, got "
            + (bounds.shown(image_data) if pictures is None else f"{len(pictures)} entries")
        )
    pairs = zip(texts, pictures, strict=True)
    return [
        preparer.of_text(_text(f"prompt {i}", text), _images(row))
        for i, (text, row) in enumerate(pairs)
    ], False


def _token_rows(given: object) -> tuple[list[list[Any]], bool]:
    """Return a list of prompts as unchecked token ids, and True if `given` was a single prompt."""
    rows = bounds.listed(given)
    if rows is None:
        bounds.refuse(
            "input_ids", given, "a list of token ids, or a list of such lists", PromptError
        )
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
    """Return the error for a prompt that is not text; its message says what to pass instead."""
    if isinstance(given, (bytes, bytearray, memoryview)):
        remedy = "decode bytes first, such as prompt.decode()"
    elif isinstance(given, Mapping):
        remedy = "for chat messages: engine.render_chat(messages, add_generation_prompt=True)"
    else:
        remedy = "for token ids: input_ids"
    return PromptError(f"{name} must be text, got {bounds.shown(given)}; {remedy}")


def _images(given: Any) -> list[Any]:
    """Return one prompt's pictures as a list without None.

    Only a list or tuple counts as several pictures: an array is the pixels of one picture.
    """
    several = given if isinstance(given, (list, tuple)) else [given]
    return [image for image in several if image is not None]


def _params_for(
    given: Params | Sequence[Params], count: int, changes: Mapping[str, Any], limits: Limits
) -> list[SamplingParams]:
    """Return checked sampling parameters, one for each of `count` prompts.

    Args:
        given: parameters for all prompts, or a list with one entry for each prompt.
        changes: parameters by name, which override those in `given`.
    """
    rows: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(rows) != count:
        raise InvalidParamsError(
            f"{len(rows)} sampling_params for {count} prompts; give one for all, or a list with "
            "one for each"
        )
    return [SamplingParams.of(row).override(**changes).validate(limits) for row in rows]


def _rids(given: object, count: int, single: bool) -> tuple[str, ...]:
    """Return the checked ids of `count` requests; with `single`, `given` is one id, not a list."""
    if single:
        return (bounds.filled_text("rid", given),)
    rids = bounds.listed(given)
    if rids is None or len(rids) != count:
        bounds.refuse("rid", given, f"a list of {count} texts")
    return tuple(bounds.filled_text(f"rid[{i}]", rid) for i, rid in enumerate(rids))


def _deadline(given: Mapping[str, Any]) -> float | None:
    if given.get("timeout") is not None and given.get("deadline") is not None:
        raise InvalidParamsError("timeout and deadline exclude each other; give one")
    deadline: float | None = _SECONDS("deadline", given.get("deadline"))
    timeout: float | None = _SECONDS("timeout", given.get("timeout"))
    return deadline if timeout is None else time.monotonic() + timeout
