"""Pictures of prompts, opened and processed on the thread that asks, each file once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image as Pillow

from sgl_mlx.core import Image, Part, Prompt, Text, Video
from sgl_mlx.errors import PromptError
from sgl_mlx.models.vision.image import open_image
from sgl_mlx.models.vision.model import PreparedImage, VisionModel
from sgl_mlx.models.vision.video import read_frames
from sgl_mlx.runtime.vision.byte_lru import ByteLRU


class Pictures:
    """What one model's vision part makes of pictures; for any thread.

    A program's calls bring the same picture again and again, many at once; what was made of it is
    kept, by where it comes from, in `limit` bytes.

    Args:
        vision: None for a model of text alone, which refuses every picture.
        model: its name, for that.
        filler: the token that stands for pictures if the vocabulary has none for it.
    """

    def __init__(self, vision: VisionModel | None, model: str, filler: int, limit: int) -> None:
        self._vision = vision
        self._model = model
        self._filler = filler
        self._known: ByteLRU[Hashable, PreparedImage] = ByteLRU(limit)
        self._under_way: dict[Hashable, Future[PreparedImage]] = {}
        self._lock = Lock()
        self._prepared = 0
        self._open_seconds = 0.0
        self._process_seconds = 0.0

    def token(self, part: Image | Video) -> int:
        """What stands for each of its features among the tokens."""
        vision = self._of(part)
        holder = vision.video_token if isinstance(part, Video) else vision.image_token
        return self._filler if holder is None or holder.id is None else holder.id

    def prepare(self, part: Image | Video, alone: bool) -> PreparedImage:
        """Pixels, hash and number of tokens of a picture.

        Args:
            alone: whether it is the only one in its prompt.

        Raises:
            PromptError: the model takes no pictures, or no videos.
            ImageError: see `VisionModel.prepare` and `read_frames`.
        """
        vision = self._of(part)
        count = part.num_frames if isinstance(part, Video) else int(alone)
        key = _origin(part.source), isinstance(part, Video), count
        if key[0] is None:
            return self._make(vision, part, alone)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                return known
            is_first = key not in self._under_way
            made = self._under_way.setdefault(key, Future())
        if is_first:
            self._fulfil(made, key, lambda: self._make(vision, part, alone))
        return made.result()

    def _fulfil(
        self, made: Future[PreparedImage], key: Hashable, make: Callable[[], PreparedImage]
    ) -> None:
        """What several threads wait for, whether it is a picture or an error."""
        try:
            made.set_result(make())
        except BaseException as error:  # of whichever kind, or they would wait for ever
            made.set_exception(error)
        with self._lock:
            del self._under_way[key]
            if made.exception() is None:
                self._known.put(key, made.result(), made.result().pixels.nbytes)

    def _make(self, vision: VisionModel, part: Image | Video, alone: bool) -> PreparedImage:
        started = time.perf_counter()
        frames = _open(part)
        opened = time.perf_counter()
        if isinstance(part, Video):
            made = vision.prepare_video(frames)
        else:
            made = vision.prepare(frames[0], alone=alone)
        with self._lock:
            self._prepared += 1
            self._open_seconds += opened - started
            self._process_seconds += time.perf_counter() - opened
        return made

    def prompt(self, text: str, images: Sequence[Any]) -> Prompt:
        """A text with pictures where it says so: `<image>`, or as the model writes it.

        Raises:
            PromptError: not as many pictures as places for them, or the model takes none.
        """
        if not images:
            return (Text(text),)
        mark = self._of(Image(images[0])).image_token.text
        pieces = text.split(mark)
        if len(pieces) != len(images) + 1:
            raise PromptError(
                f"the prompt has {len(pieces) - 1} {mark}, and there are {len(images)} pictures"
            )
        parts: list[Part] = [Text(pieces[0])]
        for image, piece in zip(images, pieces[1:], strict=True):
            parts += [Image(image), Text(piece)]
        return tuple(parts)

    def stats(self) -> dict[str, float]:
        """Counts and seconds since the start."""
        return {
            "prepared_images": self._prepared,
            "open_seconds": self._open_seconds,
            "process_seconds": self._process_seconds,
            "prepared_bytes": self._known.used,
        }

    def _of(self, part: Image | Video) -> VisionModel:
        if self._vision is None:
            raise PromptError(
                f"{self._model} takes no pictures; load a LLaVA model, or give mmproj= the vision "
                "part that belongs to it"
            )
        if isinstance(part, Video) and self._vision.video_token is None:
            raise PromptError(
                f"{self._model} takes pictures but no videos; LLaVA-OneVision models take both"
            )
        return self._vision


def _open(part: Image | Video) -> list[Pillow.Image]:
    if isinstance(part, Video):
        return read_frames(part.source, part.num_frames)
    return [open_image(part.source)]


def _origin(source: Any) -> Hashable:
    """Equal for sources with equal content, as far as can be told cheaply; None if it cannot."""
    if isinstance(source, (str, Path)) and not str(source).startswith("data:"):
        try:
            stat = Path(source).expanduser().stat()
        except (OSError, ValueError):  # opening it will say what is wrong
            return None
        return str(source), stat.st_ino, stat.st_mtime_ns, stat.st_size
    if isinstance(source, str):
        return hashlib.sha256(source.encode()).digest()
    if isinstance(source, (bytes, bytearray)):
        return hashlib.sha256(source).digest()
    try:  # a PIL.Image, which the caller may change between two calls
        return source.mode, source.size, hashlib.sha256(source.tobytes()).digest()
    except Exception:  # broken, or none at all: opening it will say so
        return None
