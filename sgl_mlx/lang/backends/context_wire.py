"""Requests of `RuntimeEndpoint` to `/v1/contexts`, a path that only this project's server has.

A prompt is sent as a list of its parts: text, generated text with its token ids, pictures, gaps and
parallel branches. Choices are scored by the server in one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b
from typing import Any

from sgl_mlx.core import ChoiceScore, ChoiceScores, Prompt, SamplingParams
from sgl_mlx.lang.pictures import data_url
from sgl_mlx.protocol import parts
from sgl_mlx.protocol.sglang import tokens

CONTEXTS = "/v1/contexts"
RENDER = "/apply-template"
GENERATE = "/v1/contexts/new/generate"
SCORE = "/v1/contexts/new/score"
COMPLETIONS = "/v1/completions"
CARRIED = frozenset({GENERATE, SCORE, RENDER})
"""Paths of requests that can travel inside a completion request, which routers forward."""
_DEFAULTS = SamplingParams()


def generation(prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
    """Return the body of a request that continues a prompt.

    Raises:
        ImageError: a picture cannot be read.
        NotYetError: the prompt has a video.
    """
    given = {f.name: getattr(params, f.name) for f in fields(params)}
    changed = {k: v for k, v in given.items() if v != getattr(_DEFAULTS, k)}
    if params.logit_bias:
        changed["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    return {**_prompt(prompt), "sampling_params": changed}


def scoring(prompt: Prompt, choices: Sequence[str], unconditional: bool) -> dict[str, Any]:
    """Return the body of a request that scores choices; raises as `generation`."""
    return {**_prompt(prompt), "choices": list(choices), "unconditional": unconditional}


def scores(answer: Mapping[str, Any]) -> ChoiceScores:
    """Return the scores in the server's answer."""
    rows = [
        ChoiceScore(
            row["text"],
            tokens(row["tokens"]),
            None if row["unconditional"] is None else tokens(row["unconditional"]),
        )
        for row in answer["choices"]
    ]
    return ChoiceScores(rows, answer["prompt_tokens"], answer["cached_tokens"])


def carried(path: str, body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the body of a completion request that carries the request `body` to `path`.

    Its `prompt` is the text by which a router chooses the worker; equal pictures give equal text.
    """
    return {
        "model": model,
        "prompt": _routed(body.get("parts", ())),
        "stream": bool(body.get("stream")),
        "carried": {"path": path, "body": body},
    }


def _routed(encoded: Iterable[Any]) -> str:
    pieces = []
    for part in encoded:
        match part:
            case str():
                pieces.append(part)
            case {"generated": text}:
                pieces.append(text)
            case {"image_url": url}:
                pieces.append(blake2b(url.encode()).hexdigest())
            case {"parallel": branches}:
                pieces += map(_routed, branches)
    return "".join(pieces)


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {"parts": parts.encode(prompt, data_url), "keep": False}
