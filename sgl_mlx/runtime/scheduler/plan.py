"""What the scheduler asks of the runner, and what comes back: plain integers.

Rows are named by sequence id, never by their place in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.transfers import Transfer
from sgl_mlx.runtime.scheduler.sequence import Scores


class PicturePart(NamedTuple):
    """The tokens from `at` on are `length` features of a picture, its `first` and those after."""

    at: int
    first: int
    length: int
    image: Any


@dataclass(frozen=True)
class Row:
    """One sequence's share of a step.

    Args:
        id: the sequence.
        tokens: new tokens, computed in this step.
        prefix: slots of everything before them.
        slots: where KV goes: one slot a new token; when an epoch opens, also those of the tokens
            to come.
        position: of the first new token.
        sample: whether the logits after the last token are wanted.
        params, seed, output: how to sample them; `output` is what was generated so far.
        history: prompt and output, where a repetition penalty needs it.
        targets: the prompt tokens that the logits of the last `len(targets)` tokens score (less
            one, the very last, when `sample` is set: its logits are sampled from).
        allowed: the tokens that may be sampled, asked for once a step and as late as possible.
        prefix_positions: positions of the prefix keys; None when they count 0, 1, 2 …
        pictures: which of the new tokens stand for pictures.
    """

    id: str
    tokens: tuple[int, ...]
    prefix: tuple[int, ...]
    slots: tuple[int, ...]
    position: int
    sample: bool
    params: SamplingParams
    seed: int = 0
    output: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    prefix_positions: tuple[int, ...] | None = None
    allowed: Callable[[], bytes] | None = None
    pictures: tuple[PicturePart, ...] = ()

    @property
    def score_start(self) -> int:
        """Index into `tokens` of the first one whose logits are scored against `targets`."""
        return len(self.tokens) - len(self.targets) - (1 if self.sample else 0)


@dataclass(frozen=True)
class Extend:
    """Prefill chunks and single decode tokens in one forward pass; all KV is in the pool after.

    `transfers` are made first, in order.
    """

    rows: tuple[Row, ...]
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True)
class Decode:
    """One token for each of `ids`, within an *epoch*: up to `width` steps over fixed rows.

    `opening` names the rows when an epoch begins. With `ahead` the runner may submit the next
    step before it waits for this one: the next plan will then be a `Decode` of the same epoch,
    for these rows or fewer, or the epoch is over. `transfers` are made before an epoch opens.
    """

    ids: tuple[str, ...]
    width: int
    ahead: bool
    opening: tuple[Row, ...] = ()
    transfers: tuple[Transfer, ...] = ()


Plan = Extend | Decode


@dataclass(frozen=True)
class StepResult:
    """What a step found, by sequence id.

    Args:
        tokens: the token sampled after each row's last one.
        prompt_scores: logprobs of prompt tokens (`Row.targets`).
        token_scores: logprobs of the sampled token and its alternatives.
    """

    tokens: dict[str, int]
    prompt_scores: dict[str, Scores] = field(default_factory=dict)
    token_scores: dict[str, Scores] = field(default_factory=dict)
