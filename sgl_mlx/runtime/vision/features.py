"""Features of pictures from the vision model, computed once per picture and cached."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Protocol

import mlx.core as mx

from sgl_mlx.models.vision.model import PreparedImage, VisionModel
from sgl_mlx.runtime.scheduler.plan import EncoderStats, Lookup, Row, Shown
from sgl_mlx.runtime.vision.byte_lru import ByteLRU


class PictureFeatures(Protocol):
    """The interface through which a runner puts pictures in place; `Features` is one."""

    def place(self, rows: Sequence[Row], embeddings: mx.array, lookup: Lookup | None) -> mx.array:
        """Replace the embeddings of pictures' tokens; see `Features.place`."""
        ...

    def stats(self) -> EncoderStats | None:
        """Return counts and seconds since the start; None if another rank encodes the pictures."""
        ...


class Features:
    """Cache of the vision model's features, which replace the embeddings of pictures' tokens.

    Use it on the engine thread only.

    Args:
        limit: largest size of the cached features, in bytes.
    """

    def __init__(self, vision: VisionModel, limit: int) -> None:
        self._vision = vision
        self._kept: ByteLRU[str, mx.array] = ByteLRU(limit)
        # the next chunk of a prompt finds its pictures here, even if they exceed the limit
        self._latest: dict[str, mx.array] = {}
        self._encoded = 0
        self._passes = 0
        self._seconds = 0.0

    def place(self, rows: Sequence[Row], embeddings: mx.array, lookup: Lookup | None) -> mx.array:
        """Replace the embeddings of pictures' tokens by the pictures' features, in place.

        Args:
            rows: the sequences of a step.
            embeddings: `(tokens, width)` of the rows' new tokens, one row after another.
            lookup: returns a picture by name; called for pictures whose features are not cached.

        Returns:
            `embeddings`.
        """
        assert lookup is not None, "a row has a picture, and the runner no lookup"
        names = dict.fromkeys(shown.picture for row in rows for shown in row.pictures)
        features = self._features(names, lookup)
        start = 0
        for row in rows:
            for shown in row.pictures:
                first = start + shown.at
                part = features[shown.picture][shown.first : shown.first + shown.length]
                embeddings[first : first + shown.length] = part.astype(embeddings.dtype)
            start += len(row.tokens)
        return embeddings

    def clear(self) -> None:
        """Remove all features from the cache."""
        self._kept.clear()
        self._latest = {}

    def stats(self) -> EncoderStats:
        """Return counts and seconds since the start."""
        return EncoderStats(self._encoded, self._passes, self._seconds, self._kept.used)

    def _features(self, names: Collection[str], lookup: Lookup) -> dict[str, mx.array]:
        """Return the features of pictures by name; those not cached are encoded in one batch."""
        found = {name: self._latest[name] for name in names if name in self._latest}
        found |= {name: array for name in names if (array := self._kept.get(name)) is not None}
        missing = [name for name in names if name not in found]
        if missing:
            started = time.perf_counter()
            new = dict(zip(missing, self._encode(missing, lookup), strict=True))
            self._seconds += time.perf_counter() - started
            self._encoded += len(new)
            self._passes += 1
            for name, array in new.items():
                self._kept.put(name, array, array.nbytes)
            found.update(new)
        self._latest = found
        return found

    def _encode(self, names: Sequence[str], lookup: Lookup) -> Sequence[mx.array]:
        return self._vision.encode([_prepared(lookup.image(name)) for name in names])


def _prepared(image: Shown) -> PreparedImage:
    assert isinstance(image, PreparedImage), "a picture that no vision model prepared"
    return image
