"""Drafter with a small model of the same vocabulary: a scheduler and a runner of its own.

A guess is a request to the small model. Its radix tree finds the tokens that it has computed
before, so a guess after a rejected guess computes only the new tokens. All sequences of a step are
drafted in one ragged batch (Leviathan et al., arXiv 2211.17192; but a guessed token is accepted
only if it equals the sampled token).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Rows
from dataclasses import replace

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.scheduler.plan import Runner, Scores
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.costs import Costs
from sgl_mlx.runtime.speculation.drafter import Proposal

log = logging.getLogger(__name__)

SOURCE = "model"


class ModelDrafter:
    """Drafter with a small model, used by a `Speculator`; `costs` are those of its steps.

    Args:
        vocabulary: number of tokens that the large model knows; a guess ends before the first token
            that the large model does not know.
    """

    source = SOURCE
    cheap = False

    def __init__(self, scheduler: Scheduler, runner: Runner, costs: Costs, vocabulary: int) -> None:
        self.costs = costs
        self._scheduler = scheduler
        self._runner = runner
        self._vocabulary = vocabulary

    def draft(self, sequences: Rows[Sequence], count: int) -> dict[str, Proposal]:
        """Guess up to `count` tokens after each sequence; return the proposals by sequence id.

        Sequences with pictures, or after parallel branches or a gap, are left out. If the small
        model fails, nothing is guessed.
        """
        twins = [_twin(s, count) for s in sequences if not (s.pictures or s.after or s.gap)]
        for twin in twins:
            self._scheduler.add(twin)
        try:
            while (plan := self._scheduler.next()) is not None:
                self._scheduler.commit(plan, self._runner.run(plan))
        except Exception as error:
            # as text: a log that keeps the error would keep the arrays of its frames
            fault = f"{type(error).__name__}: {error}"
            log.warning("the draft model failed: %s; nothing is drafted in this step", fault)
            self._runner.forget_epoch()
            self._scheduler.fail_all("the draft model failed")
            return {}
        found = {twin.id: self._known(twin) for twin in twins}
        return {name: Proposal(tokens, SOURCE) for name, tokens in found.items() if tokens}

    def flush(self) -> None:
        """Forget all prefixes that the small model has computed."""
        self._runner.synchronise()
        self._scheduler.flush_cache()

    def _known(self, twin: Sequence) -> tuple[int, ...]:
        assert isinstance(twin.output, _Guesses)
        tokens = twin.output.tokens
        unknown = (i for i, token in enumerate(tokens) if token >= self._vocabulary)
        return tuple(tokens[: next(unknown, len(tokens))])


class _Guesses:
    """A `sequence.Output` that keeps the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        self.tokens.append(token)
        return None

    def score_prompt(self, scores: Scores) -> None:
        raise AssertionError("a guess asks for no logprobs")

    score_next = score_prompt

    def finish(self, reason: FinishReason) -> None:
        pass


def _twin(s: Sequence, count: int) -> Sequence:
    """Make the request to the small model.

    The request samples with the parameters of `s`, and with the same random numbers at the same
    places. So two models with similar probabilities often choose the same token.
    """
    written = len(s.tokens) - s.prompt_length
    params = replace(
        s.params, max_new_tokens=written + count, return_logprob=False, top_logprobs_num=0
    )
    twin = Sequence(
        id=s.id,
        tokens=list(s.tokens),
        output=_Guesses(),
        params=params,
        seed=s.seed,
        namespace=s.namespace,
    )
    twin.prompt_length = s.prompt_length
    return twin
