"""`token_ids_logprob` of `/generate`: logprobs of given tokens at each position of an answer.

Each logprob is computed by a request of its own, whose prompt ends in the given token. The tokens
before the given token are in the prefix cache by then, so that a request computes only one or two
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from sgl_mlx.core import Completion, SamplingParams, Text
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.flight import Ask, Completions
from sgl_mlx.server.service import in_thread, new_id
from sgl_mlx.server.visit import Visit

Scored = list[Any]
"""A logprob, a token id, and None in place of the token's text: SGLang's form."""

_SCORE = SamplingParams(max_new_tokens=0, return_logprob=True)


def checked_ids(given: Any) -> list[int]:
    """Return `given`; raises a 400 `HttpError` if it is not a list of integers."""
    if not isinstance(given, list) or not all(type(token) is int for token in given):
        raise bad_value("token_ids_logprob must be a list of token ids", "token_ids_logprob")
    return given


async def token_scores(
    visit: Visit, asks: Sequence[Ask], ids: Sequence[Sequence[int]], answers: Sequence[Completions]
) -> list[list[dict[str, list[list[Scored] | None]]]]:
    """Return the fields to add to `meta_info`: per prompt a list with one dictionary per sample.

    Args:
        ids: ids of the tokens to score, for each prompt; a prompt without ids gets no fields.
        answers: the completions of each prompt.

    Raises:
        HttpError: a prompt has pictures, or a sample needs more scores than `Limits.max_prompts`.
    """
    return [
        [await _of_sample(visit, ask, tokens, sample) if tokens else {} for sample in answer]
        for ask, tokens, answer in zip(asks, ids, answers, strict=True)
    ]


async def _of_sample(
    visit: Visit, ask: Ask, ids: Sequence[int], sample: Completion
) -> dict[str, list[list[Scored] | None]]:
    prompt = await in_thread(_tokens, visit, ask)
    whole = [*prompt, *sample.token_ids]
    start = ask.params.logprob_start_len
    first = len(prompt) if start is None or start < 0 else start
    positions = range(first, len(whole))
    most = visit.service.limits.max_prompts
    if len(positions) * len(ids) > most:
        raise bad_value(
            f"token_ids_logprob asks for {len(positions)} x {len(ids)} scores; at most {most} are "
            "computed in one request",
            "token_ids_logprob",
        )
    rows = iter(await _scored(visit, whole, [p for p in positions if p], ids))
    found = [next(rows) if position else None for position in positions]
    split = len(prompt) - first
    return {
        "input_token_ids_logprobs": found[:split],
        "output_token_ids_logprobs": found[split:],
    }


async def _scored(
    visit: Visit, tokens: Sequence[int], positions: Sequence[int], ids: Sequence[int]
) -> Iterator[list[Scored]]:
    """Score every id at every position; return an iterator of rows, one for each position."""
    asks = [
        Ask(
            [*tokens[:position], token],
            _SCORE.override(logprob_start_len=position),
            new_id("score-"),
        )
        for position in positions
        for token in ids
    ]
    answers = await visit.whole(asks) if asks else []
    scores = iter(_last_logprob(answer[0]) for answer in answers)
    return iter([[[next(scores), token, None] for token in ids] for _ in positions])


def _last_logprob(answer: Completion) -> float | None:
    assert answer.logprobs is not None
    return answer.logprobs.input[-1].logprob


def _tokens(visit: Visit, ask: Ask) -> list[int]:
    """Return the tokens of a prompt, as the engine encodes it."""
    match ask.prompt:
        case [Text(text=text)]:
            return visit.service.engine.tokenizer.encode(text)
        case [int(), *_]:
            return list(cast(Sequence[int], ask.prompt))
    raise bad_value("token_ids_logprob takes no pictures", "token_ids_logprob")
