"""Sampling on the device, so that a step can be submitted before the previous one has finished.

The token of a batch row depends only on its logits, its seed and its position in the output. One
uniform number, hashed from seed and position, picks from the cumulative distribution. So neither
the other rows of the batch nor preemption change a sample.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Container, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from sgl_mlx.runtime.scheduler.plan import Lookup, Row, Scores


class Sampler:
    """A sampler for a fixed list of batch rows, used for one step or for a run of decode steps.

    Args:
        rows: the batch rows; a row's `output` holds the tokens that it generated before the first
            step.
        end_tokens: the model's end tokens. Before `min_new_tokens` are generated, the end tokens
            and the row's `stop_token_ids` are forbidden.
        vocabulary: number of logits of each row.
        lookup: finds the masks of the rows' constraints; None if no row has a constraint.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        end_tokens: frozenset[int],
        vocabulary: int,
        lookup: Lookup | None = None,
    ) -> None:
        self.mask_seconds = 0.0
        self._lookup = lookup
        self._rows = rows
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        params = [row.params for row in rows]
        self._all_greedy = all(p.greedy for p in params)
        self._greedy = mx.array([p.greedy for p in params])
        self._temperature = mx.array([1.0 if p.greedy else p.temperature for p in params])[:, None]
        self._filtered = any(not p.greedy and (p.top_p < 1 or p.top_k > 0) for p in params)
        self._top_p = mx.array([p.top_p for p in params])[:, None]
        self._top_k = mx.array([p.top_k if p.top_k > 0 else vocabulary for p in params])[:, None]
        self._min_p = mx.array([p.min_p for p in params])[:, None]
        self._any_min_p = any(p.min_p > 0 and not p.greedy for p in params)
        self._penalties = _Penalties(rows, vocabulary) if _penalised(rows) else None
        self._bias = _bias(rows, vocabulary)
        self._wants_scores = [p.return_logprob for p in params]
        self._top_count = max((p.top_logprobs_num for p in params if p.return_logprob), default=0)

    @property
    def constrained(self) -> bool:
        """True if a row has a constraint, whose mask depends on the tokens of the previous step."""
        return any(row.constraint is not None for row in self._rows)

    def sample(self, logits: mx.array, step: int, live: Container[str] | None = None) -> Sampled:
        """Sample one token for each row from logits `(rows, vocabulary)`.

        Args:
            step: number of earlier calls for these rows, from 0.
            live: ids of the rows whose tokens are used; the constraints of other rows are not asked
                for masks. None means all rows.
        """
        raw = logits.astype(mx.float32)
        adjusted = self._penalties.apply(raw) if self._penalties else raw
        if self._bias is not None:
            at_rows, tokens, values = self._bias
            adjusted = adjusted.at[at_rows, tokens].add(values)
        adjusted = self._forbid_ends(adjusted, step)
        if self.constrained:
            adjusted = mx.where(self._allowed(step, live), adjusted, -mx.inf)
        tokens = mx.argmax(adjusted, axis=-1)
        if not self._all_greedy:
            drawn = self._draw(adjusted / self._temperature, step)
            tokens = mx.where(self._greedy, tokens, drawn)
        if self._penalties:
            self._penalties.count(tokens)
        scores = self._score(raw, tokens) if any(self._wants_scores) else None
        return Sampled([row.id for row in self._rows], tokens, scores, self._score_widths())

    def _draw(self, logits: mx.array, step: int) -> mx.array:
        probabilities = mx.softmax(logits, axis=-1)
        if self._filtered:
            probabilities = self._keep_top(probabilities)
        if self._any_min_p:  # last, so that `top_p` is a share of the whole mass
            floor = self._min_p * mx.max(probabilities, axis=-1, keepdims=True)
            probabilities = mx.where(probabilities >= floor, probabilities, 0.0)
        cumulative = mx.cumsum(probabilities, axis=-1)
        uniform = mx.array([_uniform(r.seed, len(r.output) + step) for r in self._rows])
        target = uniform[:, None] * cumulative[:, -1:]
        # the first token whose cumulative mass exceeds the target, so never one of probability 0
        return mx.argmax(cumulative > target, axis=-1)

    def _keep_top(self, probabilities: mx.array) -> mx.array:
        """Keep the probabilities within both `top_k` and `top_p`; set all other ones to zero."""
        ranked = -mx.sort(-probabilities, axis=-1)
        before = mx.cumsum(ranked, axis=-1) - ranked
        total = mx.sum(probabilities, axis=-1, keepdims=True)
        kept = (before < self._top_p * total) & (mx.arange(self._vocabulary) < self._top_k)
        least = mx.min(mx.where(kept, ranked, mx.inf), axis=-1, keepdims=True)
        return mx.where(probabilities >= least, probabilities, 0.0)

    def _forbid_ends(self, logits: mx.array, step: int) -> mx.array:
        banned = []
        for i, row in enumerate(self._rows):
            if row.constraint is None and self._too_short(row, step):
                banned += [(i, token) for token in self._ends_of(row)]
        if not banned:
            return logits
        rows, tokens = (mx.array(list(x), mx.int32) for x in zip(*banned, strict=True))
        logits = logits + 0.0  # a copy: the assignment below must not change the raw logits
        logits[rows, tokens] = -mx.inf
        return logits

    def _too_short(self, row: Row, step: int) -> bool:
        return len(row.output) + step < row.params.min_new_tokens

    def _ends_of(self, row: Row) -> list[int]:
        ends = self._end_tokens | set(row.params.stop_token_ids)
        return [token for token in ends if token < self._vocabulary]

    def _allowed(self, step: int, live: Container[str] | None) -> mx.array:
        """Return a mask `(rows, vocabulary)`, true for the tokens that constraints allow.

        Rows without a constraint allow every token. End tokens before `min_new_tokens` are
        masked, unless a constraint allows nothing else. Computed on the CPU while the device
        computes the logits.
        """
        assert self._lookup is not None, "a row has a constraint, and the sampler no lookup"
        started = time.perf_counter()
        asked = {
            i: (row.constraint, row.place)
            for i, row in enumerate(self._rows)
            if row.constraint is not None and (live is None or row.id in live)
        }
        masks = self._lookup.masks(set(asked.values()))
        allowed = np.ones((len(self._rows), self._vocabulary), dtype=np.bool_)
        for i, place in asked.items():
            mask = self._unpack(masks[place]) if place in masks else allowed[i]
            if self._too_short(self._rows[i], step):
                longer = mask.copy()
                longer[self._ends_of(self._rows[i])] = False
                mask = longer if longer.any() else mask
            allowed[i] = mask
        self.mask_seconds += time.perf_counter() - started
        return mx.array(allowed)

    def _unpack(self, mask: bytes) -> NDArray[np.bool_]:
        """Unpack a bit mask to booleans `(vocabulary,)`; token 0 is the lowest bit of byte 0."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        unpacked = np.zeros(self._vocabulary, dtype=np.bool_)
        unpacked[: len(bits)] = bits[: self._vocabulary]
        return unpacked

    def _score(self, logits: mx.array, tokens: mx.array) -> Scored:
        return score(logits, tokens, self._top_count)

    def _score_widths(self) -> list[int | None]:
        """List `top_logprobs_num` of each row; None for a row that wants no logprobs."""
        return [
            row.params.top_logprobs_num if wants else None
            for row, wants in zip(self._rows, self._wants_scores, strict=True)
        ]


class Scored:
    """Logprobs of the tokens chosen in a step's rows, on the device.

    Attributes:
        chosen: logprob of each row's chosen token, `(rows,)`.
        top: ids of each row's likeliest tokens, unsorted, `(rows, top)`; empty if not asked for.
        top_logprobs: logprobs of the tokens in `top`.
    """

    def __init__(self, chosen: mx.array, top: mx.array, top_logprobs: mx.array) -> None:
        self.chosen, self.top, self.top_logprobs = chosen, top, top_logprobs

    def arrays(self) -> list[mx.array]:
        return [self.chosen, self.top, self.top_logprobs]

    def rows(self, tokens: Sequence[int], first: int, last: int, top: int) -> Scores:
        """Return the scores of rows `first … last - 1` as Python numbers.

        Call it after the arrays are evaluated, once for many rows: each call copies to the host.

        Args:
            tokens: the chosen tokens of these rows.
            top: how many of the likeliest tokens to return for each row, best first.
        """
        chosen: Any = self.chosen[first:last].tolist()
        alternatives: list[tuple[tuple[float, int], ...]] = []
        if top:
            logprob_rows: Any = self.top_logprobs[first:last].tolist()
            id_rows: Any = self.top[first:last].tolist()
            for logprobs, ids in zip(logprob_rows, id_rows, strict=True):
                ranked = sorted(zip(logprobs, ids, strict=True), key=lambda x: (-x[0], x[1]))
                alternatives.append(tuple(ranked[:top]))
        return Scores(tuple(zip(chosen, tokens, strict=True)), tuple(alternatives))


class Sampled:
    """The sampled tokens of a step, one for each row; they may not be computed yet."""

    def __init__(
        self, ids: list[str], tokens: mx.array, scored: Scored | None, widths: list[int | None]
    ) -> None:
        self.ids, self.tokens, self.scored, self._widths = ids, tokens, scored, widths

    def arrays(self) -> list[mx.array]:
        return [self.tokens, *(self.scored.arrays() if self.scored else [])]

    def wait(self) -> tuple[dict[str, tuple[int, ...]], dict[str, Scores]]:
        """Wait for the step; return its tokens and the requested logprobs, both by sequence id.

        If several rows have the same id, they are the places of a draft, and their tokens are
        joined.
        """
        sampled: Any = self.tokens.tolist()
        tokens: dict[str, tuple[int, ...]] = {}
        scores: dict[str, Scores] = {}
        for i, (name, top) in enumerate(zip(self.ids, self._widths, strict=True)):
            tokens[name] = (*tokens.get(name, ()), sampled[i])
            if self.scored is not None and top is not None:
                mine = self.scored.rows(sampled[i : i + 1], i, i + 1, top)
                scores[name] = scores.get(name, Scores()) + mine
        return tokens, scores


def score(logits: mx.array, tokens: mx.array, top: int) -> Scored:
    """Compute the logprobs of `tokens (rows,)` under `logits (rows, vocabulary)`.

    Args:
        top: how many of the likeliest tokens to find for each row; 0 for none.
    """
    logits = logits.astype(mx.float32)
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - norm)[:, 0]
    if not top:
        return Scored(chosen, mx.zeros((0,), mx.int32), mx.zeros((0,)))
    top = min(top, logits.shape[-1])
    likeliest = mx.argpartition(-logits, top - 1, axis=-1)[:, :top]
    return Scored(chosen, likeliest, mx.take_along_axis(logits, likeliest, axis=-1) - norm)


class _Penalties:
    """Frequency, presence and repetition penalties of each row, with token counts on the device."""

    def __init__(self, rows: Sequence[Row], vocabulary: int) -> None:
        params = [row.params for row in rows]
        self._frequency = mx.array([p.frequency_penalty for p in params])[:, None]
        self._presence = mx.array([p.presence_penalty for p in params])[:, None]
        self._repetition = mx.array([p.repetition_penalty for p in params])[:, None]
        self._repeats = any(p.repetition_penalty != 1 for p in params)
        counts = mx.zeros((len(rows), vocabulary))
        seen = mx.zeros((len(rows), vocabulary), mx.bool_)
        for i, row in enumerate(rows):
            if row.output:
                counts = counts.at[i, mx.array(row.output)].add(1.0)
            if row.params.repetition_penalty != 1 and row.history:
                seen[i, mx.array(row.history)] = True
        self._counts, self._seen = counts, seen
        self._rows = mx.arange(len(rows))

    def apply(self, logits: mx.array) -> mx.array:
        if self._repeats:
            harder = mx.where(logits > 0, logits / self._repetition, logits * self._repetition)
            logits = mx.where(self._seen, harder, logits)
        return logits - self._frequency * self._counts - self._presence * (self._counts > 0)

    def count(self, tokens: mx.array) -> None:
        self._counts = self._counts.at[self._rows, tokens].add(1.0)
        if self._repeats:
            seen = self._seen + False
            seen[self._rows, tokens] = True
            self._seen = seen


def _bias(rows: Sequence[Row], vocabulary: int) -> tuple[mx.array, mx.array, mx.array] | None:
    """Collect `logit_bias` of all rows as arrays of row, token and value; None without any bias.

    Tokens outside the vocabulary are left out.
    """
    found = [
        (i, token, value)
        for i, row in enumerate(rows)
        for token, value in row.params.logit_bias
        if token < vocabulary
    ]
    if not found:
        return None
    at_rows, tokens, values = zip(*found, strict=True)
    return mx.array(at_rows, mx.int32), mx.array(tokens, mx.int32), mx.array(values)


def _penalised(rows: Sequence[Row]) -> bool:
    return any(
        p.frequency_penalty or p.presence_penalty or p.repetition_penalty != 1
        for p in (row.params for row in rows)
    )


def _uniform(seed: int, position: int) -> float:
    """Hash a seed and a position to a number in [0, 1)."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "little") >> 8) / (1 << 24)
