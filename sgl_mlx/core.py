"""The nouns every part shares. Standard library only; knows no model, no runtime, no language.

A *prompt* is a tuple of parts (`Text`, `Generated`, `Image`, `Video`, `Shift`, `Parallel`). A
request is a prompt with `SamplingParams`; its answer is one `Completion` per sample, and while it
grows a `StreamEvent` for each new piece. `select` asks for `ChoiceScores`.
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
    """Plain text of a prompt; special tokens written in it are recognised."""

    text: str


@dataclass(frozen=True)
class Generated:
    """Text that a model wrote, with the tokens it chose, so that their KV is found again."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Image:
    """A picture, where it stands in the prompt.

    Attributes:
        source: a path, the bytes of a file, a `data:` URL or a `PIL.Image`.
    """

    source: Any


@dataclass(frozen=True)
class Video:
    """A film, of which `num_frames` evenly spaced frames are shown.

    Attributes:
        source: a path.
    """

    source: Any
    num_frames: int


@dataclass(frozen=True)
class Shift:
    """A gap in the positions: the parts after it stand `gap` positions further on."""

    gap: int


@dataclass(frozen=True)
class Parallel:
    """Branches encoded independently after the same preceding parts (parallel context windows).

    Their keys and values stand side by side; what follows sees all of them and continues at the
    position after the longest branch.
    """

    branches: tuple[Prompt, ...]


Part = Text | Generated | Image | Video | Shift | Parallel
Prompt = tuple[Part, ...]


def prompt_text(prompt: Prompt) -> str:
    """Return the text of a prompt, without pictures; branches follow one another."""
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
            of new tokens or of the context; "abort" when the request was ended from outside.
        matched: the stop string, or the id of the token, that ended it.
        length: the limit of new tokens that was reached.
        message: says more about an abort.
    """

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None
    length: int | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability given all before it; None for the first token of a prompt."""

    logprob: float | None
    token_id: int
    text: str | None = None

    def to_list(self) -> list[Any]:
        return [self.logprob, self.token_id, self.text]


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of prompt tokens (`input`) and of generated tokens (`output`).

    `input` begins at `logprob_start_len`. `input_top[i]` and `output_top[i]` are the likeliest
    tokens at the same position, best first.
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
    """SGLang's `meta_info` dictionary. The logprob entries are there if they were asked for.

    Each logprob entry is `[logprob, token id, text or None]`. A server may add entries of its own.

    Attributes:
        id: the request's id; of several samples `id-0`, `id-1` and so on.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the output, an end token included.
        cached_tokens: tokens of the prompt that were not computed again.
        finish_reason: why the output ended, as a dictionary; None while it goes on.
        input_token_logprobs: those of the prompt's tokens, from `logprob_start_len` on.
        output_token_logprobs: those of the output's tokens.
        input_top_logprobs: the likeliest tokens at each of the prompt's positions.
        output_top_logprobs: the likeliest tokens at each of the output's positions.
        forced_tokens: with a constraint, output tokens that it left no choice about.
        decoded_tokens: with a constraint, output tokens that were sampled.
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


class _Answer(TypedDict):
    text: str
    output_ids: list[int]
    meta_info: MetaInfo


class GenerateResult(_Answer, total=False):
    """One answer of `Engine.generate`, in SGLang's shape.

    `index` is there in streams of several samples: which of them has grown.
    """

    index: int


@dataclass(frozen=True)
class Completion:
    """One sample: its text and tokens, and what computing it took."""

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
        """Return SGLang's dictionary of an answer."""
        return _answer(self)


@dataclass(frozen=True)
class StreamEvent:
    """New text of one sample. The pieces of a sample joined are its completion's text.

    Attributes:
        sample: which of the `n` samples of the request has grown, from 0.
        text: the new text; empty if only the end is told.
        token_ids: the new tokens, which may be more than spell the text. Servers do not tell them.
        logprobs: of the new tokens, if asked for; the first event also has the prompt's.
        finish_reason: why the sample ended, in its last event.
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
    """One sample, as far as its events tell."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = self.cached_tokens = 0
        self.id = ""
        self.logprobs: Logprobs | None = None
        self.extra: dict[str, Any] = {}

    def add(self, event: StreamEvent) -> None:
        """Take the next event of this sample."""
        self.text += event.text
        self.token_ids += event.token_ids
        self.finish_reason = event.finish_reason
        self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
        self.id = event.id
        if event.logprobs is not None:
            self.logprobs = (self.logprobs or Logprobs()) + event.logprobs
        self.extra.update(event.extra)

    def meta_info(self) -> MetaInfo:
        """Return SGLang's `meta_info` of a chunk: counts and logprobs so far."""
        return _meta_info(self)

    def to_dict(self) -> GenerateResult:
        """Return SGLang's dictionary of a chunk: all text and tokens so far."""
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
    """One choice after a prompt: log-probabilities of its tokens.

    `tokens` starts where the tokens of prompt + choice leave the tokens of the prompt alone, so a
    prompt token that merges with the choice counts (token healing). `unconditional` holds the
    same tokens scored without the prompt, if asked for.
    """

    text: str
    tokens: tuple[TokenLogprob, ...]
    unconditional: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class ChoiceScores:
    """The scores `select` decides on; token counts are of the prompt alone."""

    choices: Sequence[ChoiceScore]
    prompt_tokens: int
    cached_tokens: int
