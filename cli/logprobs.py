"""The option `--logprobs`, and the lines that it prints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import click

from sgl_mlx.core import Logprobs, TokenLogprob
from sgl_mlx.lang.choices import ChoicesDecision


class _Count(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).lstrip("-").isdecimal():
            reason = (
                f"{value!r} is not a number; put PROMPT before --logprobs, or write --logprobs=0"
            )
            self.fail(reason, param, ctx)
        return super().convert(value, param, ctx)


logprobs_option = click.option(
    "--logprobs",
    is_flag=False,
    flag_value=0,
    type=_Count(min=0),
    metavar="[N]",
    help="Also print each token's log-probability, and N alternatives.",
)


def rows_of(logprobs: Logprobs) -> Iterator[str]:
    """Yield a line for each token: logprob (or "forced" if it has none), text, alternatives."""
    for token, top in zip_longest(logprobs.output, logprobs.output_top, fillvalue=()):
        assert isinstance(token, TokenLogprob)
        others = "  ".join(f"{t.text!r} {t.logprob:.3f}" for t in top)
        yield f"{_shown(token.logprob)}  {token.text!r:<16}{others}".rstrip()


def rows_of_choices(choices: tuple[str, ...], decision: ChoicesDecision) -> Iterator[str]:
    """Yield a line for each choice: mean logprob of its tokens, its text, each token's logprob."""
    meta = decision.meta_info
    for choice, mean, tokens in zip(
        choices,
        meta["normalized_prompt_logprobs"],
        meta["input_token_logprobs"],
        strict=True,
    ):
        spelled = "  ".join(f"{text!r} {logprob:.3f}" for logprob, _, text in tokens)
        yield f"{_shown(mean)}  {choice!r:<16}{spelled}"


def _shown(logprob: float | None) -> str:
    return "  forced" if logprob is None else f"{logprob:8.3f}"
