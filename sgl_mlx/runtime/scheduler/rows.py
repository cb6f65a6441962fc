"""Which tokens of which sequences make up a step, as rows for the runner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import PicturePart, Row
from sgl_mlx.runtime.scheduler.sequence import Sequence


def prefill_rows(running: Iterable[Sequence], limits: SchedulerLimits) -> tuple[Row, ...]:
    """One token of each decoding sequence, then chunks of prompts, within the step's limits."""
    room, score_room = limits.step_tokens, limits.score_tokens
    rows: list[Row] = []
    for s in sorted(running, key=lambda s: s.prefilling):
        count = min(s.pending, len(s.table) - s.computed, room)
        if s.logprob_start is not None:
            unscored = max(s.logprob_start - 1 - s.computed, 0)
            count = min(count, unscored + score_room)
            score_room -= max(count - unscored, 0)
        if count > 0:
            rows.append(row_of(s, count, s.computed + count))
            room -= count
    return tuple(rows)


def row_of(s: Sequence, count: int, table_end: int) -> Row:
    """The next `count` tokens of a sequence, and its slots for them up to `table_end`."""
    start, end = s.computed, s.computed + count
    return Row(
        id=s.id,
        tokens=tuple(s.tokens[start:end]),
        prefix=s.prefix_slots(),
        slots=tuple(s.table[start:table_end]),
        position=s.base.origin + start,
        sample=end == len(s.tokens) and s.wants_logits,
        params=s.params,
        seed=s.seed,
        output=s.output_tokens,
        history=tuple(s.tokens) if s.params.repetition_penalty != 1 else (),
        targets=_targets(s, end),
        prefix_positions=s.prefix_positions() if s.base.origin else None,
        allowed=s.constraint.allowed if s.constraint is not None else None,
        pictures=tuple(_pictures(s, start, end)),
    )


def _pictures(s: Sequence, start: int, end: int) -> Iterator[PicturePart]:
    """What the tokens from `start` to `end` show."""
    for picture in s.pictures:
        first, last = max(picture.start, start), min(picture.end, end)
        if first < last:
            yield PicturePart(first - start, first - picture.start, last - first, picture.image)


def _targets(s: Sequence, end: int) -> tuple[int, ...]:
    """Prompt tokens scored by the logits of the tokens from `computed` to `end`."""
    if s.logprob_start is None:
        return ()
    return tuple(s.tokens[max(s.computed + 1, s.logprob_start) : min(end + 1, s.prompt_length)])
