"""Conversion of prompts to requests, and of answers to completions, in SGLang's HTTP protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from sgl_mlx.core import (
    Completion,
    FinishReason,
    Logprobs,
    Prompt,
    SamplingParams,
    Shift,
    StreamEvent,
    TokenLogprob,
)
from sgl_mlx.errors import BackendError, NotYetError
from sgl_mlx.lang import pictures
from sgl_mlx.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR

_IN_SAMPLING = (
    "skip_special_tokens",
    "max_new_tokens",
    "min_new_tokens",
    "n",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
    "no_stop_trim",
    "regex",
    "json_schema",
    "ebnf",
)
_IN_REQUEST = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)
_DROPPED_BY_ROUTERS = ("logit_bias", "stop_regex")
_NUMBER_STOPS = (" ", "\n")
_DTYPES = {
    "int": (REGEX_INT, _NUMBER_STOPS),
    "float": (REGEX_FLOAT, _NUMBER_STOPS),
    "bool": (REGEX_BOOL, ()),
    "str": (REGEX_STR, ()),
}


def flat_text(prompt: Prompt) -> str:
    """Return the text of a prompt, as `select` and `prefill` send it to a server.

    Raises:
        NotYetError: the prompt has pictures or videos, or gaps in its positions.
    """
    if pictures.has_pictures(prompt):
        raise NotYetError("select and prefill over pictures need an in-process Engine")
    return _text(prompt)


def _text(prompt: Prompt, mark: str = "") -> str:
    if any(isinstance(part, Shift) for part in prompt):
        raise NotYetError("position_ids_offset needs an in-process Engine; a server cannot do it")
    return pictures.flat_text(prompt, mark)


def payload(prompt: Prompt, params: SamplingParams, mark: str) -> dict[str, Any]:
    """Return the JSON body of a request to `/generate`.

    Args:
        mark: the text to write in place of each picture.

    Raises:
        NotYetError: the protocol cannot express the prompt or the parameters.
        ImageError: a picture cannot be read.
    """
    if params.grammar is not None:
        raise NotYetError("grammar= needs an in-process Engine; use regex, json_schema or ebnf")
    sampling = {name: getattr(params, name) for name in _IN_SAMPLING}
    if params.dtype is not None:
        regex, stops = _DTYPES[params.dtype]
        sampling.update(regex=regex, stop=(*params.stop, *stops))
    given = {k: v for k, v in sampling.items() if v not in (None, ())}
    if params.logit_bias:
        given["logit_bias"] = {str(token): value for token, value in params.logit_bias}
    asked = {name: getattr(params, name) for name in _IN_REQUEST}
    wanted = {k: v for k, v in asked.items() if v != getattr(SamplingParams, k)}
    if urls := pictures.data_urls(prompt):
        wanted["image_data"] = urls
    return {"text": _text(prompt, mark), "sampling_params": given, **wanted}


def refuse_what_routers_drop(params: SamplingParams) -> None:
    """Raise `NotYetError` for parameters that sglang-router leaves out when it forwards a request.

    Without the check, the answer would be another one than asked for, and nobody would know.
    """
    if dropped := [name for name in _DROPPED_BY_ROUTERS if getattr(params, name)]:
        raise NotYetError(
            f"sglang-router does not forward {' or '.join(dropped)} of /generate; send such "
            "requests to a worker, or use workers of sgl-mlx serve"
        )


def prefill_payload(text: str) -> dict[str, Any]:
    return {"text": text, "sampling_params": {"max_new_tokens": 0, "temperature": 0}}


def scoring_payload(texts: list[str] | str | None, start: int) -> dict[str, Any]:
    return {
        **({"text": texts} if texts else {}),
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "logprob_start_len": start,
    }


def scored_tokens(
    choice: str, prompt_tokens: int, output: Mapping[str, Any]
) -> tuple[TokenLogprob, ...]:
    """Return the tokens of a choice, from a server's logprobs of prompt + choice.

    A token that spans the end of the prompt and the beginning of the choice is included. The
    logprobs begin with some tokens of the prompt; how many depends on the server. These tokens are
    dropped: they are found by the lengths of the tokens' texts or, if a character spans several
    tokens, by the token counts.

    Args:
        choice: the text of the choice.
        prompt_tokens: the number of tokens of the prompt alone.
        output: the server's output for prompt + choice.
    """
    meta = output["meta_info"]
    row = tokens(meta["input_token_logprobs"])
    texts = [token.text or "" for token in row]
    if "\ufffd" in "".join(texts):
        whole = meta.get("prompt_tokens", prompt_tokens - 1 + len(row))
        return row[max(prompt_tokens - (whole - len(row)), 0) :]
    looked_back = sum(map(len, texts)) - len(choice)
    ends = accumulate(map(len, texts))
    return tuple(token for token, end in zip(row, ends, strict=True) if end > looked_back)


def tokens(entries: Sequence[Sequence[Any]]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(*entry[:3]) for entry in entries)


def _rows(rows: Sequence[Sequence[Any] | None]) -> tuple[tuple[TokenLogprob, ...], ...]:
    return tuple(tokens(row or ()) for row in rows)


_LOGPROBS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "input": ("input_token_logprobs", tokens),
    "output": ("output_token_logprobs", tokens),
    "input_top": ("input_top_logprobs", _rows),
    "output_top": ("output_top_logprobs", _rows),
}
_HANDLED = {"id", "prompt_tokens", "cached_tokens", "finish_reason"} | {
    key for key, _ in _LOGPROBS.values()
}


def completion(text: str, meta: Mapping[str, Any], token_ids: tuple[int, ...] = ()) -> Completion:
    """Return the `Completion` for an output of a server: its text, `meta_info` and token ids.

    `token_ids` is empty if the server does not send them.
    """
    known = {f: read(meta.get(key) or ()) for f, (key, read) in _LOGPROBS.items()}
    return Completion(
        text,
        token_ids,
        _finish_reason(meta.get("finish_reason")),
        meta.get("prompt_tokens", 0),
        meta.get("cached_tokens", 0),
        str(meta.get("id", "")),
        Logprobs(**known) if any(known.values()) else None,
        {key: value for key, value in meta.items() if key not in _HANDLED},
    )


def stopped_at(meta: Mapping[str, Any]) -> str | None:
    """Return the stop string that ended an output; None if the output ended otherwise."""
    matched = (meta.get("finish_reason") or {}).get("matched")
    return matched if isinstance(matched, str) else None


def checked_meta(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an output's `meta_info` unchanged.

    Raises:
        BackendError: the server aborted the request because of an error.
    """
    reason = meta.get("finish_reason") or {}
    if reason.get("type") == "abort" and (reason.get("status_code") or reason.get("err_type")):
        raise BackendError(f"the server aborted the request: {reason.get('message')}")
    return meta


def event(
    sample: int, piece: str, before: Completion | None, now: Completion, ended: bool
) -> StreamEvent | None:
    """Return the event for a chunk of a stream; None if it has no new text and ends no sample.

    Args:
        sample: the number of the sample.
        piece: the new text.
        before: the completion at the time of the previous event; None at the first event.
        now: the completion now. `before` and `now` hold all logprobs so far; the event gets the new
            logprobs.
        ended: True if the sample has ended.
    """
    if not piece and not ended:
        return None
    return StreamEvent(
        sample,
        piece,
        logprobs=_later(before.logprobs if before else None, now.logprobs),
        finish_reason=now.finish_reason if ended else None,
        id=now.id,
        prompt_tokens=now.prompt_tokens,
        cached_tokens=now.cached_tokens,
        extra=now.extra,
    )


def _later(before: Logprobs | None, now: Logprobs | None) -> Logprobs | None:
    if now is None or before is None:
        return now
    rows = {name: getattr(now, name)[len(getattr(before, name)) :] for name in _LOGPROBS}
    return Logprobs(**rows)


def _finish_reason(given: Mapping[str, Any] | None) -> FinishReason:
    names = ("type", "matched", "length", "message")
    return FinishReason(**{"type": "stop", **{n: given[n] for n in names if given and n in given}})
