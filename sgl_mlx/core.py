"""Prompts and answers: the types that the language, the backends and the runtime share.

A *prompt* is a tuple of parts (`Text`, `Generated`, `Image`, `Video`, `Shift`, `Parallel`). A
request is a prompt with `SamplingParams`. Its answer is one `Completion` per sample; while a sample
is generated, each new piece of text is a `StreamEvent`. `select` scores its choices: the answer is
a `ChoiceScores`.

This module imports only the standard library and the modules of the sampling parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast

from sgl_mlx.sampling import GREEDY_TEMPERATURE, SamplingParams

__all__ = [
    "GREEDY_TEMPERATURE",
    "ChoiceScore",
    "ChoiceScores",
    "Completion",
    "FinishReason",
    "GenerateResult",
    "Generated",
    "Image",
    "Logprobs",
    "MetaInfo",
    "Parallel",
    "Part",
    "PartialCompletion",
    "Prompt",
    "SamplingParams",
    "Shift",
    "StreamEvent",
    "Text",
    "TokenLogprob",
    "Video",
    "prompt_text",
]

# ---------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Plain text in a prompt; special tokens spelled in it, such as `<s>`, are recognised.

    Args:
        ends: the positions in `text`, in characters, where a piece that the program appended ends
            and the next piece begins. A runtime may cache prefixes that end at these positions.
            Comparison of texts ignores `ends`.
    """

    text: str
    ends: tuple[int, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Generated:
    """Text that a model generated, with its token ids; without ids, the text is encoded again.

    Encoding may give other tokens than the model generated, and the cache has no KV of these other
    tokens.
    """

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Image:
    """A picture at its place in the prompt.

    Attributes:
        source: a path, the bytes of a file, a `data:` URL or a `PIL.Image`.
    """

    source: Any


@dataclass(frozen=True)
class Video:
    """A video at its place in the prompt; the model sees `num_frames` evenly spaced frames.

    Attributes:
        source: the path of a video file.
    """

    source: Any
    num_frames: int


@dataclass(frozen=True)
class Shift:
    """A gap in the token positions: the positions of all later parts are larger by `gap`."""

    gap: int


@dataclass(frozen=True)
class Parallel:
    """Branches computed independently after the same preceding parts (parallel context windows).

    No branch attends to another branch. Later parts attend to all branches, and continue at the
    position after the longest branch.
    """

    branches: tuple[Prompt, ...]


Part = Text | Generated | Image | Video | Shift | Parallel
Prompt = tuple[Part, ...]


def prompt_text(prompt: Prompt) -> str:
    """Return the text of a prompt without pictures; the texts of branches are concatenated."""
    pieces = []
    for part in prompt:
        if isinstance(part, (Text, Generated)):
            pieces.append(part.text)
        elif isinstance(part, Parallel):
            pieces.extend(prompt_text(branch) for branch in part.branches)
    return "".join(pieces)


# ---------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishReason:
    """The reason why an output ended.

    Attributes:
        type: "stop" at an end token, a stop string or the end of a grammar; "length" at the limit
            of new tokens or of the context; "abort" when the request was cancelled or failed.
        matched: the stop string, or the id of the token, that ended the output.
        length: the limit of new tokens that was reached.
        message: the cause of an abort.
    """

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None
    length: int | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability, given the tokens before it.

    `logprob` is None for the first token of a prompt. `text` is None unless the request asked for
    the texts of tokens.
    """

    logprob: float | None
    token_id: int
    text: str | None = None

    def to_list(self) -> list[Any]:
        return [self.logprob, self.token_id, self.text]


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of prompt tokens (`input`) and of generated tokens (`output`).

    `input` begins at the prompt position `logprob_start_len`. `input_top[i]` holds the likeliest
    tokens at the position of `input[i]`, best first; `output_top[i]` does so for `output[i]`.
    """

    input: tuple[TokenLogprob, ...] = ()
    output: tuple[TokenLogprob, ...] = ()
    input_top: tuple[tuple[TokenLogprob, ...], ...] = ()
    output_top: tuple[tuple[TokenLogprob, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "input_token_logprobs": [t.to_list() for t in self.input],
            "output_token_logprobs": [t.to_list() for t in self.output],
            "input_top_logprobs": [[t.to_list() for t in row] for row in self.input_top],
            "output_top_logprobs": [[t.to_list() for t in row] for row in self.output_top],
        }

    def __add__(self, later: Logprobs) -> Logprobs:
        return Logprobs(
            self.input + later.input,
            self.output + later.output,
            self.input_top + later.input_top,
            self.output_top + later.output_top,
        )


class MetaInfo(TypedDict, total=False):
    """SGLang's `meta_info` dictionary. Logprobs are included if the request asked for them.

    Each logprob is a list `[logprob, token id, text or None]`. A server may add other entries.

    Attributes:
        id: the request's id; with several samples, `<id>-0`, `<id>-1` and so on.
        prompt_tokens: the number of tokens of the prompt.
        completion_tokens: the number of tokens of the output, an end token included.
        cached_tokens: the number of prompt tokens that came from the cache.
        finish_reason: why the output ended, as a dictionary; None while generation goes on.
        input_token_logprobs: logprobs of the prompt's tokens, from `logprob_start_len` on.
        output_token_logprobs: logprobs of the output's tokens.
        input_top_logprobs: the likeliest tokens at each of the prompt's positions.
        output_top_logprobs: the likeliest tokens at each of the output's positions.
        forced_tokens: with a constraint, the number of output tokens that the constraint fixed.
        decoded_tokens: with a constraint, the number of output tokens that were sampled.
        drafted_tokens: the number of tokens that speculation guessed, if it guessed any.
        accepted_tokens: the number of guessed tokens that became output.
    """

    id: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish_reason: dict[str, Any] | None
    input_token_logprobs: list[Any]
    output_token_logprobs: list[Any]
    input_top_logprobs: list[Any]
    output_top_logprobs: list[Any]
    forced_tokens: int
    decoded_tokens: int
    drafted_tokens: int
    accepted_tokens: int


class _Answer(TypedDict):
    text: str
    output_ids: list[int]
    meta_info: MetaInfo


class GenerateResult(_Answer, total=False):
    """One answer of `Engine.generate`, as SGLang's dictionary.

    `index` is the number of the sample, from 0. Only streams of several samples have it.
    """

    index: int


@dataclass(frozen=True)
class Completion:
    """One finished sample: its text, its token ids, why it ended, and its prompt's token counts.

    Attributes:
        text: the generated text.
        token_ids: the generated tokens; empty if an HTTP backend does not send them.
        finish_reason: why the sample ended.
        prompt_tokens: the number of tokens of the prompt.
        cached_tokens: the number of prompt tokens that came from the cache.
        id: the id of the request; with several samples, `<id>-0`, `<id>-1` and so on.
        logprobs: logprobs of prompt and output; None if the request asked for none.
        extra: further entries of SGLang's `meta_info`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    id: str = ""
    logprobs: Logprobs | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def meta_info(self) -> MetaInfo:
        """Return SGLang's `meta_info` dictionary."""
        return _meta_info(self)

    def to_dict(self) -> GenerateResult:
        """Return SGLang's dictionary of an answer: `text`, `output_ids` and `meta_info`."""
        return _answer(self)


@dataclass(frozen=True)
class StreamEvent:
    """A new piece of one sample. The texts of all its events, joined, are the sample's whole text.

    Attributes:
        sample: the number of the sample, from 0 to `n` - 1.
        text: the new text; empty if the event only reports the end.
        token_ids: the new tokens. They may run ahead of the text. Empty from HTTP backends.
        logprobs: logprobs of the new tokens, if the request asked for logprobs; the first event
            also has those of the prompt.
        finish_reason: why the sample ended; None before the last event.
        id, prompt_tokens, cached_tokens, extra: see `Completion`.
    """

    sample: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    id: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


class PartialCompletion:
    """One sample under way, assembled from its `StreamEvent`s."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = self.cached_tokens = 0
        self.id = ""
        self.logprobs: Logprobs | None = None
        self.extra: dict[str, Any] = {}

    def add(self, event: StreamEvent) -> None:
        """Append the next event of this sample."""
        self.text += event.text
        self.token_ids += event.token_ids
        self.finish_reason = event.finish_reason
        self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
        self.id = event.id
        if event.logprobs is not None:
            self.logprobs = (self.logprobs or Logprobs()) + event.logprobs
        self.extra.update(event.extra)

    def meta_info(self) -> MetaInfo:
        """Return SGLang's `meta_info` of a stream chunk: counts and logprobs so far."""
        return _meta_info(self)

    def to_dict(self) -> GenerateResult:
        """Return SGLang's dictionary of a stream chunk: all text and tokens so far."""
        return _answer(self)


def _meta_info(sample: Completion | PartialCompletion) -> MetaInfo:
    reason = sample.finish_reason
    meta: dict[str, Any] = {
        "id": sample.id,
        "prompt_tokens": sample.prompt_tokens,
        "completion_tokens": len(sample.token_ids),
        "cached_tokens": sample.cached_tokens,
        "finish_reason": None if reason is None else reason.to_dict(),
        **sample.extra,
    }
    if sample.logprobs is not None:
        meta.update(sample.logprobs.to_dict())
    return cast(MetaInfo, meta)


def _answer(sample: Completion | PartialCompletion) -> GenerateResult:
    return {
        "text": sample.text,
        "output_ids": list(sample.token_ids),
        "meta_info": sample.meta_info(),
    }


@dataclass(frozen=True)
class ChoiceScore:
    """The log-probabilities of one choice's tokens after a prompt.

    Attributes:
        text: the choice.
        tokens: the tokens of prompt + choice from the first one on that differs from the prompt's
            own tokens. So a token that spans the end of the prompt and the beginning of the choice
            is included (token healing).
        unconditional: the choice's tokens scored without the prompt; None if the caller did not
            ask for these scores.
    """

    text: str
    tokens: tuple[TokenLogprob, ...]
    unconditional: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class ChoiceScores:
    """The scores of all choices of a `select`; the token counts are those of the prompt alone."""

    choices: Sequence[ChoiceScore]
    prompt_tokens: int
    cached_tokens: int
