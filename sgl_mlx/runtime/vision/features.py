"""Features of pictures, computed once for each content and kept in a bounded cache."""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.models.vision.model import PreparedImage, VisionModel
from sgl_mlx.runtime.scheduler.plan import Row
from sgl_mlx.runtime.vision.byte_lru import ByteLRU


class Features:
    """Replaces the embeddings of pictures' tokens; on the thread that owns the model.

    Args:
        limit: bytes of features kept beyond the step that needs them.
    """

    def __init__(self, vision: VisionModel, limit: int) -> None:
        self._vision = vision
        self._kept: ByteLRU[bytes, mx.array] = ByteLRU(limit)
        # What a prompt needs that is cut into chunks stays for its next chunk, whatever its size.
        self._latest: dict[bytes, mx.array] = {}
        self._encoded = 0
        self._passes = 0
        self._seconds = 0.0

    def place(self, rows: Sequence[Row], embeddings: mx.array) -> mx.array:
        """The embeddings `(tokens, width)` of rows one after another, pictures in their places."""
        features = self._features([shown.image for row in rows for shown in row.pictures])
        start = 0
        for row in rows:
            for shown in row.pictures:
                first = start + shown.at
                part = features[shown.image.content_hash][shown.first : shown.first + shown.length]
                embeddings[first : first + shown.length] = part.astype(embeddings.dtype)
            start += len(row.tokens)
        return embeddings

    def clear(self) -> None:
        """Forget all features."""
        self._kept.clear()
        self._latest = {}

    def stats(self) -> dict[str, float]:
        """Counts and seconds since the start."""
        return {
            "encoded_images": self._encoded,
            "encoder_passes": self._passes,
            "encode_seconds": self._seconds,
            "feature_bytes": self._kept.used,
        }

    def _features(self, images: Sequence[PreparedImage]) -> dict[bytes, mx.array]:
        """Of all that a step needs, by content; what is missing is encoded in one batch."""
        wanted = {image.content_hash: image for image in images}
        looked_up = {name: self._latest.get(name) for name in wanted}
        looked_up |= {name: array for name in wanted if (array := self._kept.get(name)) is not None}
        found = {name: array for name, array in looked_up.items() if array is not None}
        missing = {name: image for name, image in wanted.items() if name not in found}
        if missing:
            started = time.perf_counter()
            new = dict(zip(missing, self._vision.encode(list(missing.values())), strict=True))
            self._seconds += time.perf_counter() - started
            self._encoded += len(new)
            self._passes += 1
            for name, array in new.items():
                self._kept.put(name, array, array.nbytes)
            found.update(new)
        self._latest = found
        return found
