"""The runner of a model: computes plans. It knows batch rows, slots and tensors, but no text.

A plan says what one step computes. A step reads the KV pool while it is computed. New KV is written
to the pool only afterwards: at the end of an `Extend` (a step that prefills), and when an epoch (a
run of decode steps of the same rows) is over.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import mlx.core as mx

from sgl_mlx.models import cpu_math
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime.attention.select import AttentionPaths, DecodeEpoch
from sgl_mlx.runtime.attention.step import ExtendStep
from sgl_mlx.runtime.cache.tier import Grow, GrowStates, GrowWindows, Transfer
from sgl_mlx.runtime.disk.copy import PoolCopy
from sgl_mlx.runtime.pool.kv import KVPool, NewKV
from sgl_mlx.runtime.pool.memory import Garbage
from sgl_mlx.runtime.pool.states import EpochStates, StatePool, StepStates
from sgl_mlx.runtime.sampler import Sampled, Sampler, Scored, score
from sgl_mlx.runtime.scheduler.plan import (
    Decode,
    Extend,
    Lookup,
    Plan,
    Row,
    RunnerStats,
    Scores,
    StepResult,
)
from sgl_mlx.runtime.speculation.head_runner import Guesses, HeadRunner
from sgl_mlx.runtime.speculation.verify import accept, places
from sgl_mlx.runtime.vision.features import PictureFeatures
from sgl_mlx.runtime.vision.positions import lags, rotary_positions

_ROWS_AHEAD = 8
"""Most rows of an epoch for which a CPU submits the next step before it returns this one's tokens.
On a CPU this hides only a little Python time and delays an epoch's first token by one step."""


class ModelRunner:
    """A `plan.Runner` that computes with one model over one KV pool, in this process.

    Args:
        end_tokens: the model's end-of-sequence ids.
        paths: attention over the pool; None is plain MLX.
        copy: carries out the transfers between pools and disk; None if plans contain none.
        features: encodes pictures; None if the model takes none.
        lookup: finds the constraints and pictures that plans name; None if plans name none.
        states: the pool of recurrent states; None for a model of attention alone.
        sampler: the class that samples each step's tokens.
        head: the model's MTP head, whose layer is the pool's last; None for none.
    """

    def __init__(
        self,
        model: Adapter,
        pool: KVPool,
        end_tokens: frozenset[int],
        paths: AttentionPaths | None = None,
        copy: PoolCopy | None = None,
        features: PictureFeatures | None = None,
        lookup: Lookup | None = None,
        states: StatePool | None = None,
        sampler: type[Sampler] = Sampler,
        head: HeadRunner | None = None,
    ) -> None:
        self._sampler = sampler
        self._head = head
        self._states = states
        self._features = features
        self.lookup = lookup
        self._copy = copy
        self._model = model
        self._pool = pool
        self.paths = paths or AttentionPaths(pool)
        self._end_tokens = end_tokens
        self._decoding: _Decoding | None = None
        self._garbage = Garbage(pool.nbytes + (states.nbytes if states is not None else 0))
        self._forward_passes = 0
        self._mask_seconds = 0.0

    def run(self, plan: Plan) -> StepResult:
        """Compute a plan and return its tokens and scores; see `plan.Runner.run`."""
        if isinstance(plan, Decode) and self._model.ragged:
            return self._decode(plan)
        self.synchronise(plan.transfers)
        return self._extend(plan.rows if isinstance(plan, Extend) else plan.opening)

    def stats(self) -> RunnerStats:
        """Return counts and seconds since the start."""
        encoder = self._features.stats() if self._features is not None else None
        read = self._pool.keys[0].tokens_read if self._pool.keys else 0
        return RunnerStats(self._forward_passes, self._mask_seconds, read, encoder)

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        """Write the open epoch's KV and states to the pools, then carry out transfers.

        Transfers that enlarge a pool come first, then all other transfers in order.
        """
        self.close_epoch()
        for transfer in transfers:
            if isinstance(transfer, Grow):
                self._pool.grow(transfer.slots)
            elif isinstance(transfer, GrowWindows):
                self._pool.grow_windows(transfer.slots)
            elif isinstance(transfer, GrowStates):
                assert self._states is not None, "states of a model of attention alone"
                self._states.grow(transfer.slots)
        copies = [t for t in transfers if not isinstance(t, Grow | GrowStates | GrowWindows)]
        if copies:
            assert self._copy is not None, "copies without a second tier"
            self._copy.make(copies)

    def close_epoch(self) -> None:
        """Wait for submitted steps; write the open epoch's KV and states, if any, to the pools."""
        decoding = self._decoding
        if decoding is None:
            return
        tail = decoding.epoch.tail()
        state_slots, states = decoding.states.final() if decoding.states is not None else ([], [])
        mx.eval(tail.keys, tail.values, states)
        self._decoding = decoding = None
        self._pool.write(*tail)
        if self._states is not None:
            self._states.write(state_slots, states)
        self._garbage.clear()

    def forget_epoch(self) -> None:
        """Drop the open epoch after a failed step: none of its KV reaches the pool."""
        self._decoding = None
        if self._head is not None:
            self._head.forget()

    def draft(self, rows: Sequence[Row], count: int) -> Guesses:
        """Guess tokens with the model's MTP head between two steps; see `HeadRunner.draft`."""
        assert self._head is not None, "a model without an MTP head"
        open_rows = [] if self._decoding is None else self._decoding.epoch.rows
        return self._head.draft(rows, count, {row.id: len(row.prefix) for row in open_rows})

    # -- decode -------------------------------------------------------------------------------

    def _decode(self, plan: Decode) -> StepResult:
        if plan.opening:
            self._decoding = self._open(plan)
        decoding = self._decoding
        assert decoding is not None, "a Decode plan continues an epoch that was never opened"
        wanted = set(plan.ids)
        if decoding.states is not None:
            decoding.states.put_aside(wanted)
        current = decoding.ahead or self._submit(decoding, wanted)
        decoding.ahead = None
        if decoding.states is not None:
            decoding.states.returned()
        if plan.ahead and (len(decoding.epoch.rows) <= _ROWS_AHEAD or not cpu_math.on_cpu()):
            decoding.ahead = self._submit(decoding, wanted)
        tokens, scores = current.wait()
        if self._head is not None:
            self._head.keep_decoded(decoding.epoch.rows, tokens)
        return StepResult(
            {name: token for name, token in tokens.items() if name in wanted},
            token_scores={name: s for name, s in scores.items() if name in wanted},
        )

    def _open(self, plan: Decode) -> _Decoding:
        before = None if self._decoding is None else self._decoding.epoch
        self.synchronise(plan.transfers)
        rows = arrange(plan.opening)
        sampler = self._sampler(rows, self._end_tokens, self._model.vocabulary, self.lookup)
        tokens = mx.array([row.tokens[-1] for row in rows], mx.int32)
        states = None if self._states is None else EpochStates(self._states, rows)
        return _Decoding(self.paths.epoch(rows, plan.width, before), sampler, tokens, states)

    def _submit(self, decoding: _Decoding, live: Container[str]) -> Sampled:
        epoch = decoding.epoch
        positions = epoch.begin_step()
        if decoding.lags is not None:
            positions = positions - decoding.lags
        every = mx.arange(len(epoch.rows))
        self._forward_passes += 1
        kept = decoding.states
        states = None if kept is None else kept.begin_step()
        hidden: list[mx.array] | None = None if self._head is None else []
        logits = self._model.forward(
            decoding.tokens, positions, epoch, every, states=states, hidden=hidden
        )
        sampled = self._choose(decoding.sampler, logits, epoch.steps - 1, live)
        decoding.tokens = sampled.tokens
        if self._head is not None and hidden is not None:
            self._head.decode(epoch, sampled.tokens, hidden[0])
        written = epoch.arrays()
        if kept is not None and states is not None:
            kept.end_step(states)
            written += kept.arrays()
        mx.async_eval(*sampled.arrays(), *written, *(hidden or []))  # type: ignore[no-untyped-call]
        return sampled

    # -- extend -------------------------------------------------------------------------------

    def _extend(self, rows: Sequence[Row]) -> StepResult:
        rows = arrange(rows)
        wanted = _WantedLogits(rows)
        states = None if self._states is None else StepStates(self._states, rows)
        hidden: list[mx.array] | None = None if self._head is None else []
        if self._model.ragged:
            logits, made = self._forward_together(rows, wanted, states, hidden)
        else:
            logits, made = self._forward_one_by_one(rows, wanted)
        scored = wanted.score_prompts(logits)
        sampled = self._sample(wanted, logits)
        new = [] if states is None else states.rows.new
        results = [x.arrays() for x in (scored, sampled) if x is not None]
        if self._head is not None and hidden is not None:
            results.append(self._head.extend(rows, hidden[0], sampled, made))
        # other ranks wait for this step's hidden states even if no logits are wanted
        sent = [logits] if self._model.pipelined else []
        mx.eval(made.keys, made.values, new, *results, sent)
        del hidden, logits, new, sent
        self._pool.write(*made)
        if states is not None:
            states.write()
        del made, states
        self._garbage.clear()
        tokens, scores = sampled.wait() if sampled else ({}, {})
        for row in rows:
            if row.drafted:
                tokens[row.id] = accept(row, tokens[row.id])
                if row.id in scores:
                    scores[row.id] = scores[row.id].first(len(tokens[row.id]))
        if self._head is not None:
            self._head.keep(rows, tokens)
        return StepResult(tokens, wanted.prompt_scores(scored), scores)

    def _forward_together(
        self,
        rows: Sequence[Row],
        wanted: _WantedLogits,
        states: StepStates | None,
        hidden: list[mx.array] | None,
    ) -> _Forward:
        self._forward_passes += 1
        step = ExtendStep(self.paths, rows)
        embeddings = self._embeddings(rows, step.tokens)
        positions = step.positions
        if any(row.lag or row.pictures for row in rows):
            positions = rotary_positions(rows, positions)
        logits = self._model.forward(
            step.tokens,
            positions,
            step,
            wanted.index,
            embeddings,
            None if states is None else states.rows,
            hidden,
        )
        return logits, step.made()

    def _forward_one_by_one(self, rows: Sequence[Row], wanted: _WantedLogits) -> _Forward:
        logits: list[mx.array] = []
        slots: list[int] = []
        new: list[list[tuple[mx.array, mx.array]]] = [[] for _ in self._pool.layers]
        for row, index in zip(rows, wanted.by_row, strict=True):
            prefix = self._pool.gather_seen(row.prefix) if row.prefix else None
            tokens = mx.array(row.tokens, mx.int32)
            wanted_here = mx.array(index, mx.int32)
            embeddings = self._embeddings([row], tokens)
            self._forward_passes += 1
            out, kv = self._model.forward_dense(
                tokens, prefix, wanted_here, embeddings, len(row.prefix)
            )
            logits.append(out)
            slots += row.slots[: len(row.tokens)]
            for layer, pair in zip(new, kv, strict=True):
                layer.append(pair)
        keys = [mx.concatenate([k for k, _ in layer]) for layer in new]
        values = [mx.concatenate([v for _, v in layer]) for layer in new]
        return mx.concatenate(logits), NewKV(slots, keys, values)

    def _embeddings(self, rows: Sequence[Row], tokens: mx.array) -> mx.array | None:
        """Return token embeddings with picture features in place; None if no row has pictures."""
        if not any(row.pictures for row in rows):
            return None
        assert self._features is not None, "pictures for a model of text alone"
        return self._features.place(rows, self._model.embed(tokens), self.lookup)

    def _sample(self, wanted: _WantedLogits, logits: mx.array) -> Sampled | None:
        if not wanted.sampled_rows:
            return None
        rows, vocabulary = wanted.sampled_rows, logits.shape[-1]
        sampler = self._sampler(rows, self._end_tokens, vocabulary, self.lookup)
        return self._choose(sampler, logits[mx.array(wanted.sampled_at, mx.int32)], 0)

    def _choose(
        self, sampler: Sampler, logits: mx.array, step: int, live: Container[str] | None = None
    ) -> Sampled:
        """Sample a step's tokens; the device computes logits while constraints compute masks."""
        if sampler.constrained:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        before = sampler.mask_seconds
        sampled = sampler.sample(logits, step, live)
        self._mask_seconds += sampler.mask_seconds - before
        return sampled


def arrange(rows: Iterable[Row]) -> list[Row]:
    """Sort rows: rows of one token first, then by prefix, so that equal prefixes are adjacent."""
    return sorted(rows, key=lambda row: (len(row.tokens) > 1, row.prefix))


_Forward = tuple[mx.array, NewKV]
"""The logits of a forward pass, and the keys and values of its new tokens."""


class _Decoding:
    """An open epoch of decode steps. `ahead` is the next step, if it was submitted already."""

    def __init__(
        self, epoch: DecodeEpoch, sampler: Sampler, tokens: mx.array, states: EpochStates | None
    ) -> None:
        self.states = states
        self.epoch = epoch
        self.sampler = sampler
        self.tokens = tokens
        self.lags = lags(epoch.rows) if any(row.lag for row in epoch.rows) else None
        self.ahead: Sampled | None = None


class _WantedLogits:
    """The tokens of a step whose logits are needed, to score prompt tokens or to sample.

    Args:
        rows: the step's rows, in the order of `arrange`.

    Attributes:
        index: the indices of these tokens among all tokens of the step.
        by_row: for each row, the indices of such tokens within the row.
        sampled_rows: rows to sample for; a row with drafted tokens is split by `places`.
        sampled_at: for each of `sampled_rows`, the place of its token in `index`.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.by_row: list[list[int]] = []
        self.sampled_rows = [
            place
            for row in rows
            if row.sample
            for place in (places(row) if row.drafted else (row,))
        ]
        self.sampled_at: list[int] = []
        self._scored_rows = [row for row in rows if row.targets]
        self._scored_at: list[int] = []
        flat: list[int] = []
        start = 0
        for row in rows:
            first = len(row.tokens) - len(row.targets) - row.sample - row.drafted
            mine = list(range(first, first + len(row.targets)))
            self._scored_at += range(len(flat), len(flat) + len(mine))
            if row.sample:
                at = len(flat) + len(mine)
                self.sampled_at += range(at, at + row.drafted + 1)
                mine += range(len(row.tokens) - 1 - row.drafted, len(row.tokens))
            self.by_row.append(mine)
            flat += [start + i for i in mine]
            start += len(row.tokens)
        self.index = mx.array(flat, mx.int32)

    def score_prompts(self, logits: mx.array) -> Scored | None:
        if not self._scored_at:
            return None
        targets = mx.array([t for row in self._scored_rows for t in row.targets], mx.int32)
        top = max(row.params.top_logprobs_num for row in self._scored_rows)
        return score(logits[mx.array(self._scored_at, mx.int32)], targets, top)

    def prompt_scores(self, scored: Scored | None) -> dict[str, Scores]:
        """Return prompt logprobs by sequence id, from evaluated arrays; {} if `scored` is None."""
        scores: dict[str, Scores] = {}
        if scored is None:
            return scores
        first = 0
        for row in self._scored_rows:
            last = first + len(row.targets)
            scores[row.id] = scored.rows(row.targets, first, last, row.params.top_logprobs_num)
            first = last
        return scores
