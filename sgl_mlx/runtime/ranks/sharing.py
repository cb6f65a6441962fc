"""Sampled tokens and picture features that rank 0 computes and the other ranks receive.

All ranks compute the logits of a step, but tokens are sampled on rank 0 alone, and travel to the
other ranks as one more operation of the step. So ranks cannot come to different tokens, however
their machines round, and constraints, penalties and pictures stay where they are: on rank 0.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import mlx.core as mx

from sgl_mlx.runtime.sampler import Sampled, Sampler
from sgl_mlx.runtime.scheduler.plan import EncoderStats, Lookup, Row
from sgl_mlx.runtime.vision.features import PictureFeatures


def _sum(array: mx.array, group: mx.distributed.Group) -> mx.array:
    total: mx.array = mx.distributed.all_sum(array, group=group)
    return total


def _shared(embeddings: mx.array, group: mx.distributed.Group) -> mx.array:
    """Add up the embeddings of all ranks, and compute the sum before the step's other operations.

    In a pipeline only the rank with the first layers needs them, but all ranks have to take part.
    """
    total = _sum(embeddings, group)
    mx.eval(total)
    return total


class SendingSampler(Sampler):
    """The sampler of rank 0, which hands its tokens to the other ranks."""

    group: mx.distributed.Group

    def sample(self, logits: mx.array, step: int, live: Container[str] | None = None) -> Sampled:
        sampled = super().sample(logits, step, live)
        sampled.tokens = _sum(sampled.tokens.astype(mx.int32), self.group)
        return sampled


class ReceivingSampler(Sampler):
    """The sampler of another rank, which takes the tokens of rank 0."""

    group: mx.distributed.Group

    @property
    def constrained(self) -> bool:
        """False: rank 0 alone asks for masks."""
        return False

    def sample(self, logits: mx.array, step: int, live: Container[str] | None = None) -> Sampled:
        nothing = mx.zeros((len(self._rows),), mx.int32)
        # without this dependency the sum could run before the layers' own
        [after] = mx.depends([nothing], [logits])
        ids = [row.id for row in self._rows]
        return Sampled(ids, _sum(after, self.group), None, [None] * len(ids))


class SendingFeatures:
    """Picture features of rank 0, which hands the embeddings of a step to the other ranks."""

    def __init__(self, features: PictureFeatures, group: mx.distributed.Group) -> None:
        self._features, self._group = features, group

    def place(self, rows: Sequence[Row], embeddings: mx.array, lookup: Lookup | None) -> mx.array:
        """Put features in place as `Features.place` does, for all ranks."""
        return _shared(self._features.place(rows, embeddings, lookup), self._group)

    def stats(self) -> EncoderStats | None:
        """Return the counts of this rank, which encodes all pictures."""
        return self._features.stats()


class ReceivingFeatures:
    """A stand-in for picture features on another rank, which takes the embeddings of rank 0."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group

    def place(self, rows: Sequence[Row], embeddings: mx.array, lookup: Lookup | None) -> mx.array:
        """Return the embeddings of rank 0."""
        return _shared(mx.zeros_like(embeddings), self._group)

    def stats(self) -> None:
        """Return nothing: this rank encodes no pictures."""


def sampler_of(kind: type[Sampler], group: mx.distributed.Group) -> type[Sampler]:
    """Return a subclass of `kind`, whose samplers send or receive tokens through `group`."""
    return type(kind.__name__, (kind,), {"group": group})
