"""Multi-token-prediction (MTP) head in a runner: its KV, and guesses at the next tokens.

The head's layer is one more layer of the KV pool: the slot of token i also holds the head's key and
value for position i, which are computed from token i + 1 and the large model's hidden state after
token i. Each step writes them beside the model's own keys and values. So they are shared, freed,
evicted and restored together, and a later step overwrites those of rejected tokens.

After a prefill chunk that is not the prompt's last, token i + 1 is not known yet; the next chunk
writes that key. The key is wrong where a sequence takes token i from the cache but goes on with
another token than the sequence that computed it. That costs accepted guesses, never a right token.
So does a picture: the head is given the embedding of its placeholder, not its features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx

from sgl_mlx.models.mtp_head import Head
from sgl_mlx.runtime.attention.select import AttentionPaths, DecodeEpoch
from sgl_mlx.runtime.pool.kv import KVPool, NewKV
from sgl_mlx.runtime.sampler import Sampled, Sampler
from sgl_mlx.runtime.scheduler.plan import Row
from sgl_mlx.runtime.vision.positions import lags, rotary_positions

Guesses = dict[str, tuple[int, ...]]
"""Guessed tokens by sequence id."""


class _Last(NamedTuple):
    """Hidden state `(width,)` after the last token that a sequence has computed.

    Attributes:
        position: position of that token.
        token: the token sampled after it; None in the middle of a prompt.
    """

    hidden: mx.array
    position: int
    token: int | None


class HeadRunner:
    """An MTP head, run by a `runner.ModelRunner` beside its model.

    Args:
        layer: number of the head's layer in the KV pool; the model's layers come before it.
        pool: that layer alone.
        paths: attention over that layer alone.
        ends: the model's end-of-sequence ids.
    """

    def __init__(
        self, head: Head, layer: int, pool: KVPool, paths: AttentionPaths, ends: frozenset[int]
    ) -> None:
        self._head, self._layer, self._pool, self._paths = head, layer, pool, paths
        self._end_tokens = ends
        self._hidden = mx.zeros((0,))
        self._late = NewKV((), [], [])
        self._last: dict[str, _Last] = {}
        self._submitted: deque[tuple[int, mx.array]] = deque()  # steps of the open epoch

    # -- in the model's steps -----------------------------------------------------------------

    def extend(
        self, rows: Sequence[Row], hidden: mx.array, sampled: Sampled | None, made: NewKV
    ) -> list[mx.array]:
        """Append the head's keys and values of an `Extend` step to those of the model, `made`.

        Args:
            rows: the step's rows, in order.
            hidden: the model's hidden states `(tokens, width)`.
            sampled: the sampled tokens; None if no row samples.

        Returns:
            Arrays to be evaluated with the step.
        """
        counted = mx.array([row.position + i for row in rows for i in range(len(row.tokens))])
        positions = rotary_positions(rows, counted)
        keys, values = self._head.keys_values(_next(rows, sampled), hidden, positions)
        made.keys.append(keys)
        made.values.append(values)
        self._late = self._make_late([row for row in rows if self._is_late(row)])
        self._hidden = hidden[mx.array([i for _, mine in _places(rows) for i in mine], mx.int32)]
        return [self._hidden, *self._late.keys, *self._late.values]

    def keep(self, rows: Sequence[Row], tokens: Mapping[str, tuple[int, ...]]) -> None:
        """After an `Extend`, keep the rows' last hidden states; write the keys of `_make_late`.

        Args:
            tokens: the accepted tokens and the newest one, by sequence id.
        """
        self._pool.write(*self._late)
        self._late = NewKV((), [], [])
        self._last.clear()
        first = 0
        for row, places in _places(rows):
            mine = tokens[row.id] if row.sample else ()
            accepted = max(len(mine) - 1, 0)
            position = row.position + len(row.tokens) - len(places) + accepted
            hidden = self._hidden[first + accepted]
            self._last[row.id] = _Last(hidden, position, mine[-1] if mine else None)
            first += len(places)

    def _is_late(self, row: Row) -> bool:
        """Return True if the row's first token completes the input of the head's key before it.

        That key is missing if the previous chunk was not the prompt's last.
        """
        last = self._last.get(row.id)
        known = last is not None and last.token is None and last.position == row.position - 1
        return known and bool(row.prefix)

    def _make_late(self, rows: Sequence[Row]) -> NewKV:
        """Compute the head's keys and values at the positions before the rows' first tokens."""
        if not rows:
            return NewKV((), [], [])
        last = [self._last[row.id] for row in rows]
        tokens = mx.array([row.tokens[0] for row in rows])
        positions = mx.array([x.position for x in last]) - lags(rows)
        keys, values = self._head.keys_values(tokens, mx.stack([x.hidden for x in last]), positions)
        return NewKV([row.prefix[-1] for row in rows], [keys], [values])

    def decode(self, epoch: DecodeEpoch, tokens: mx.array, hidden: mx.array) -> None:
        """Store the head's keys and values of the epoch's latest step in the epoch.

        Args:
            tokens: the sampled tokens `(rows,)`.
            hidden: the model's hidden states `(rows, width)`.
        """
        step = epoch.steps - 1
        if step == 0:
            self._submitted.clear()
        self._submitted.append((step, hidden))
        positions = mx.array([row.position + step for row in epoch.rows]) - lags(epoch.rows)
        epoch.store(self._layer, *self._head.keys_values(tokens, hidden, positions))

    def keep_decoded(self, rows: Sequence[Row], tokens: Guesses) -> None:
        """Keep the hidden states before the newest tokens, after a decode step was computed.

        Args:
            rows: the epoch's rows.
            tokens: the sampled token of each row, by sequence id.
        """
        step, hidden = self._submitted.popleft()
        self._last = {
            row.id: _Last(hidden[i], row.position + step, tokens[row.id][-1])
            for i, row in enumerate(rows)
        }

    def forget(self) -> None:
        """Drop all hidden states, after a failed step."""
        self._last.clear()
        self._submitted.clear()
        self._hidden = mx.zeros((0,))
        self._late = NewKV((), [], [])

    # -- guesses ------------------------------------------------------------------------------

    def draft(self, rows: Sequence[Row], count: int, written: Mapping[str, int]) -> Guesses:
        """Guess `count` tokens after each row; rows of unknown hidden state are left out.

        Args:
            rows: one for each sequence. Its only token is the sequence's newest; its prefix and
                position are those of the head's input, that is of the token before the newest.
            written: for sequences in an open decode epoch, the number of prefix keys that are in
                the pool; the head does not attend to later keys.
        """
        known = [row for row in rows if self._knows(row)]
        known.sort(key=lambda row: row.prefix)
        cut = [replace(row, prefix=row.prefix[: written.get(row.id)]) for row in known]
        hidden = [self._last[row.id].hidden for row in known]
        return self.guess(cut, mx.stack(hidden), count) if known else {}

    def guess(self, rows: Sequence[Row], hidden: mx.array | None, count: int) -> Guesses:
        """Guess `count` tokens after each row, from hidden states `(rows, width)`.

        From the second guess on, the head takes its own hidden states. Without `hidden`, zeros are
        used for the first guess. Nothing is written to the pool.
        """
        head, epoch = self._head, self._paths.epoch(rows, count)
        sampler = Sampler(rows, self._end_tokens, head.adapter.vocabulary)
        tokens = mx.array([row.tokens[-1] for row in rows], mx.int32)
        found: list[mx.array] = []
        for step in range(count):
            positions = epoch.begin_step() - lags(rows)
            logits, hidden = head.forward(tokens, hidden, positions, epoch)
            tokens = sampler.sample(logits, step).tokens
            found.append(tokens)
        by_row: Any = mx.stack(found, axis=1).tolist()
        return {row.id: tuple(mine) for row, mine in zip(rows, by_row, strict=True)}

    def _knows(self, row: Row) -> bool:
        last = self._last.get(row.id)
        return last is not None and last[1:] == (row.position, row.tokens[-1])


def _next(rows: Sequence[Row], sampled: Sampled | None) -> mx.array:
    """Return the token after each token of a step; 0 after a chunk of a prompt."""
    tokens = mx.array([t for row in rows for t in (*row.tokens[1:], 0)], mx.int32)
    if sampled is not None:
        places = [i for row, mine in _places(rows) if row.sample for i in mine]
        tokens[mx.array(places, mx.int32)] = sampled.tokens.astype(mx.int32)
    return tokens


def _places(rows: Sequence[Row]) -> Iterator[tuple[Row, range]]:
    """Yield each row with the numbers of its last tokens in the step.

    These are the tokens after which tokens are sampled, or the last one if none is sampled.
    """
    end = 0
    for row in rows:
        end += len(row.tokens)
        yield row, range(end - 1 - row.drafted, end)
