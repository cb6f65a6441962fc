"""The nouns every part shares. Standard library only; knows no model, no runtime, no language.

A *prompt* is a tuple of parts (`Text`, `Generated`, `Image`, `Video`, `Shift`, `Parallel`). A
request is a prompt with `SamplingParams`; its answer is one `Completion` per sample. `select` asks
for `ChoiceScores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sgl_mlx.sampling import GREEDY_TEMPERATURE, SamplingParams

__all__ = [
    "GREEDY_TEMPERATURE",
    "ChoiceScore",
    "ChoiceScores",
    "Completion",
    "FinishReason",
    "Generated",
    "Image",
    "Logprobs",
    "Parallel",
    "Part",
    "Prompt",
    "SamplingParams",
    "Shift",
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
    """A film, of which `num_frames` frames are shown, evenly taken.

    Attributes:
        source: a path.
    """

    source: Any
    num_frames: int


@dataclass(frozen=True)
class Shift:
    """The parts after it stand `gap` positions further on than they would."""

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
    """All text of a prompt, without pictures; a `Parallel`'s branches one after another."""
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
    """Why an output ended; `matched` is the stop string or token id, `length` the token limit."""

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None
    length: int | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token given all before it; None for the very first of a prompt."""

    logprob: float | None
    token_id: int
    text: str | None = None

    def to_list(self) -> list[Any]:
        return [self.logprob, self.token_id, self.text]


@dataclass(frozen=True)
class Logprobs:
    """`input` covers the prompt from the start asked for, `output` the generated tokens.

    `input_top[i]` and `output_top[i]` are the likeliest tokens at the same position, best first.
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

    def meta_info(self) -> dict[str, Any]:
        """SGLang's `meta_info` dictionary."""
        meta: dict[str, Any] = {
            "id": self.id,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.token_ids),
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.finish_reason.to_dict(),
            **self.extra,
        }
        if self.logprobs is not None:
            meta.update(self.logprobs.to_dict())
        return meta


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
    """What `select` decides on; `prompt_tokens` and `cached_tokens` are of the prompt alone."""

    choices: Sequence[ChoiceScore]
    prompt_tokens: int
    cached_tokens: int
