"""Features of pictures, computed once for each content and kept in a bounded cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import mlx.core as mx

from sgl_mlx.models.vision.model import PreparedImage, VisionModel
from sgl_mlx.runtime.scheduler.plan import EncoderStats, Lookup, Row, Shown
from sgl_mlx.runtime.vision.byte_lru import ByteLRU


class Features:
    """The features that replace embeddings of pictures' tokens; for the engine thread.

    Args:
        limit: bytes of features kept beyond the step that needs them.
    """

    def __init__(self, vision: VisionModel, limit: int) -> None:
        self._vision = vision
        self._kept: ByteLRU[str, mx.array] = ByteLRU(limit)
        # a prompt that is cut into chunks finds its pictures again, whatever their size
        self._latest: dict[str, mx.array] = {}
        self._encoded = 0
        self._passes = 0
        self._seconds = 0.0

    def place(self, rows: Sequence[Row], embeddings: mx.array, lookup: Lookup) -> mx.array:
        """Put features of pictures into the embeddings `(tokens, width)` of rows in order.

        Args:
            lookup: finds the pictures whose features are not kept.
        """
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
        """Forget all features."""
        self._kept.clear()
        self._latest = {}

    def stats(self) -> EncoderStats:
        """Counts and seconds since the start."""
        return EncoderStats(self._encoded, self._passes, self._seconds, self._kept.used)

    def _features(self, names: Collection[str], lookup: Lookup) -> dict[str, mx.array]:
        """Get features of pictures by name; missing ones are encoded in one batch."""
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
