"""`/generate`: text generation in SGLang's protocol; each stream event holds all text so far."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.bounds import shown
from sgl_mlx.core import Image, Part, PartialCompletion, Prompt, SamplingParams, Text
from sgl_mlx.server.answer import answer
from sgl_mlx.server.errors import HttpError, bad_value, openai_body
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.messages import image_source
from sgl_mlx.server.native.token_scores import checked_ids, token_scores
from sgl_mlx.server.refused import Refused
from sgl_mlx.server.service import Service, new_id
from sgl_mlx.server.sse import DONE, frame
from sgl_mlx.server.visit import CacheKeys, Visit

_MARK = re.compile(r"<image>|<\|image_pad\|>")
"""The mark of a picture in a text: SGLang's, or that of Qwen's templates."""
_SCORED = ("return_logprob", "logprob_start_len", "top_logprobs_num")


class GenerateRequest(CacheKeys, kw_only=True):
    """The body of `/generate`: one prompt, or a list of prompts.

    With a list of prompts, several other fields may be lists with one value for each prompt.
    """

    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    image_data: Any = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: Any = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    rid: str | list[str] | None = None
    priority: int | None = None
    model: str | None = None
    input_embeds: Annotated[Any, Refused("give text or input_ids")] = None
    lora_path: Annotated[Any, Refused("serve the adapter, and name it in model")] = None
    return_hidden_states: Annotated[Any, Refused("only log-probabilities are returned")] = None
    custom_logit_processor: Annotated[Any, Refused("give logit_bias or a constraint")] = None


def routes(service: Service) -> list[Route]:
    """Return the route `/generate`."""

    async def generate(request: Request) -> Response:
        fields = await service.read(request, GenerateRequest)
        service.model(fields.model)
        visit = Visit(service, request, fields)
        call = _Call(visit, fields)
        return await answer(visit, call, fields.stream, _failure)

    return [Route("/generate", generate, methods=["POST", "PUT"])]


class _Call:
    """One request to `/generate`, answered as one JSON document or as a stream."""

    def __init__(self, visit: Visit, fields: GenerateRequest) -> None:
        self._service = visit.service
        self._visit = visit
        self._fields = fields
        prompts, self._single = _prompts(fields)
        rids = self._rids(len(prompts))
        self._asks = [
            Ask(prompt, self._params(i, len(prompts)), rids[i], fields.priority or 0)
            for i, prompt in enumerate(prompts)
        ]
        self._token_ids = self._scored_ids(len(prompts))

    async def whole(self) -> Any:
        answers = await self._visit.whole(self._asks)
        scores = await token_scores(self._visit, self._asks, self._token_ids, answers)
        flat = []
        for samples, added in zip(answers, scores, strict=True):
            for sample, fields in zip(samples, added, strict=True):
                told: dict[str, Any] = {**sample.to_dict()}
                flat.append({**told, "meta_info": {**told["meta_info"], **fields}})
        return flat[0] if self._single and len(flat) == 1 else flat

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield a sample's whole answer so far each time it grows.

        With several samples, or prompts in a list, each answer holds its `index` among the samples
        of all prompts.
        """
        first = [0]
        for ask in self._asks:
            first.append(first[-1] + ask.params.n)
        samples = [PartialCompletion() for _ in range(first[-1])]
        async with aclosing(self._visit.stream(self._asks)) as events:
            async for i, event in events:
                index = first[i] + event.sample
                samples[index].add(event)
                told = samples[index].to_dict()
                if len(samples) > 1 or not self._single:
                    told["index"] = index
                yield frame(told)
        yield DONE

    def _scored_ids(self, count: int) -> list[list[int]]:
        """Return the token ids to score for each prompt; no ids without `token_ids_logprob`."""
        given = self._fields.token_ids_logprob
        if not given:
            return [[] for _ in range(count)]
        if self._fields.stream:
            raise bad_value("token_ids_logprob needs stream: false", "token_ids_logprob")
        rows = given if isinstance(given, list) and isinstance(given[0], list) else [given] * count
        if len(rows) != count:
            raise bad_value(
                f"token_ids_logprob must be one list of token ids, or a list of {count} such "
                f"lists, one for each prompt, got {len(rows)} lists",
                "token_ids_logprob",
            )
        return [checked_ids(row or []) for row in rows]

    def _rids(self, count: int) -> list[str]:
        given = self._fields.rid
        if isinstance(given, list):
            if len(given) != count or not all(given):
                raise bad_value(
                    f"rid must be a list of {count} texts that are not empty, got {shown(given)}",
                    "rid",
                )
            return given
        name = given or new_id("")
        return [name] if count == 1 else [f"{name}-{i}" for i in range(count)]

    def _params(self, index: int, count: int) -> SamplingParams:
        """Return the sampling parameters and logprob options of prompt `index` of `count`."""
        fields = self._fields
        given = _row("sampling_params", fields.sampling_params, index, count) or {}
        given = {("grammar" if k == "ebnf" else k): v for k, v in given.items()}
        scored = {name: _row(name, getattr(fields, name), index, count) for name in _SCORED}
        texts = {"return_text_in_logprobs": fields.return_text_in_logprobs}
        return SamplingParams.of(given).override(**scored, **texts).validate(self._service.limits)


def _prompts(fields: GenerateRequest) -> tuple[list[Prompt | Sequence[int]], bool]:
    """Return the prompts, and True if the request gave a single prompt instead of a list."""
    text, ids = fields.text, fields.input_ids
    if (text is None) == (ids is None):
        found = "neither" if text is None else "both"
        raise bad_value(f"give either text or input_ids, got {found}")
    if ids is not None:
        single = not ids or not isinstance(ids[0], list)
        rows: list[Any] = [ids] if single else ids
        for row in rows:
            if not isinstance(row, list) or not all(type(t) is int for t in row):
                raise bad_value("input_ids must be a list of integers or of such lists")
        return list(rows), single
    assert text is not None
    if isinstance(text, str):
        return [_with_pictures(text, fields.image_data)], True
    rows = _row_of_pictures(fields.image_data, len(text))
    pairs = zip(text, rows, strict=True)
    return [_with_pictures(prompt, pictures) for prompt, pictures in pairs], False


def _row_of_pictures(given: Any, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    if not isinstance(given, list) or len(given) != count:
        raise bad_value(
            f"image_data must be a list with one entry for each of {count} prompts", "image_data"
        )
    return given


def _with_pictures(text: str, given: Any) -> Prompt:
    """Return a prompt whose picture marks are replaced by the pictures `given`, in order.

    Raises:
        HttpError: the number of marks and pictures differs, or a picture is no `data:` URL.
    """
    images = [image for image in (given if isinstance(given, list) else [given]) if image]
    if not images:
        return (Text(text),)
    pieces = _MARK.split(text)
    if len(pieces) != len(images) + 1:
        raise bad_value(
            f"the text says <image> {len(pieces) - 1} times, and image_data has {len(images)} "
            "pictures; say it once for each"
        )
    parts: list[Part] = [Text(pieces[0])]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [Image(image_source("image_data", image)), Text(piece)]
    return tuple(part for part in parts if part != Text(""))


def _row(name: str, given: Any, index: int, count: int) -> Any:
    """Return a field's value for prompt `index`; `given` is a list or one value for all prompts."""
    if not isinstance(given, list):
        return given
    if len(given) != count:
        raise bad_value(
            f"{name} must be one value, or a list with one for each of {count} prompts, got "
            f"{len(given)} values",
            name,
        )
    return given[index]


def _failure(error: HttpError) -> bytes:
    return frame(openai_body(error)) + DONE
