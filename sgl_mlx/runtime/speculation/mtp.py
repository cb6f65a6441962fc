"""Drafter with the multi-token-prediction (MTP) head that some checkpoints ship."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError, MemoryLimitError, ModelError, UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.models.mtp_head import Head, load_head
from sgl_mlx.runtime.scheduler.plan import Row
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.costs import Costs, curve
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.head_runner import Guesses, HeadRunner
from sgl_mlx.runtime.speculation.measure import DECODE_SIZES
from sgl_mlx.runtime.speculation.open import Speculate

log = logging.getLogger(__name__)

SOURCE = "mtp"
_PREFIX = 64
"""Tokens of the prefix before each measured row, as in `measure`."""
_ROUNDS = 3
_STEPS = 3
"""Consecutive guesses that are timed; the cost of a guess after the first follows from them."""

GuessAfter = Callable[[Rows[Row], int], Guesses]
"""The signature of `runner.ModelRunner.draft`."""


class MtpDrafter:
    """Drafter with a model's own MTP head, used by a `Speculator`.

    A guess takes the hidden state that the last step left, so it needs no pass of the large model.

    Args:
        guess: guesses tokens after rows; see `HeadRunner.draft`.
        costs: seconds of the head's steps.
    """

    source = SOURCE
    cheap = True

    def __init__(self, guess: GuessAfter, costs: Costs) -> None:
        self.costs = costs
        self._guess = guess

    def draft(self, sequences: Rows[Sequence], count: int) -> dict[str, Proposal]:
        """Guess `count` tokens after each sequence; return the proposals by sequence id.

        A sequence is left out if the last step has not sampled its newest token. If the head fails,
        nothing is guessed.
        """
        rows = [_row(s, count) for s in sequences if s.pending == 1 and s.computed]
        try:
            found = self._guess(rows, count)
        except Exception as error:
            # as text: a log that keeps the error would keep the arrays of its frames
            fault = f"{type(error).__name__}: {error}"
            log.warning("the MTP head failed: %s; nothing is drafted in this step", fault)
            return {}
        return {name: Proposal(tokens, SOURCE) for name, tokens in found.items()}

    def flush(self) -> None:
        pass


def _row(s: Sequence, count: int) -> Row:
    """Make the row that the head reads: the newest token, at the previous token's position."""
    row = s.row(1, len(s.table))
    return replace(
        row,
        prefix=row.prefix[:-1],
        prefix_positions=row.prefix_positions and row.prefix_positions[:-1],
        position=row.position - 1,
        slots=(0,) * count,
        params=replace(s.params, return_logprob=False, top_logprobs_num=0),
        constraint=None,
        state=None,
        window=None,
    )


def open_head(
    speculate: Speculate, loaded: LoadedModel, adapter: Adapter, alone: bool
) -> Head | None:
    """Load a model's MTP head if the option `speculate` wants it.

    Args:
        adapter: the adapter that runs the model.
        alone: False if other ranks run the model too, or a draft model guesses for it.

    Returns:
        The head; None if it is not wanted, or if "auto" finds none that can be used. With "auto", a
        head that is broken or does not fit is logged.

    Raises:
        InvalidParamsError: `speculate` is "mtp", and `alone` is False.
        ModelError, MemoryLimitError: `speculate` is "mtp", and the model has no head, or one that
            is broken or does not fit.
    """
    if speculate not in ("auto", "mtp"):
        return None
    if not alone or not adapter.ragged:
        if speculate == "mtp":
            raise InvalidParamsError(
                'speculate="mtp" works in one process and with models that run in batches; '
                'choose speculate="auto"'
            )
        return None
    try:
        return load_head(loaded.model, loaded.config, loaded.path, adapter.dtype)
    except UnsupportedModelError as error:
        if speculate == "mtp":
            raise UnsupportedModelError(f'{error}; choose speculate="auto"') from error
    except (ModelError, MemoryLimitError) as error:
        if speculate == "mtp":
            raise
        log.warning("nothing is drafted with the MTP head: %s", error)
    return None


def measure_head(
    head: HeadRunner, slots: int, clock: Callable[[], float] = time.perf_counter
) -> Costs:
    """Measure the head's steps, each as the best of three.

    Args:
        slots: number of slots of the pool; the first are read, none is written.

    Returns:
        Costs in the form that `policy.model_length` reads: the first guess of n rows as an
        `extend` of 2 n tokens, each later guess as a `decode` of n rows.
    """
    prefix = tuple(range(1, min(_PREFIX, slots) + 1))
    params = SamplingParams(temperature=0, ignore_eos=True)

    def seconds(rows: int, count: int) -> float:
        row = Row("", (0,), prefix, (0,) * count, len(prefix), True, params)
        asked = [replace(row, id=str(i)) for i in range(rows)]
        started = clock()
        head.guess(asked, None, count)
        return clock() - started

    first: list[tuple[int, float]] = []
    later: list[tuple[int, float]] = []
    for rows in DECODE_SIZES:
        one, more = (min(seconds(rows, n) for _ in range(_ROUNDS)) for n in (1, _STEPS))
        first.append((2 * rows, one))
        later.append((rows, max((more - one) / (_STEPS - 1), 1e-6)))
    return Costs(curve(first), curve(later))
