"""Opening and processing of prompts' pictures and videos, on the calling thread, with a cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from sgl_mlx.bounds import local_path
from sgl_mlx.core import Image, Part, Prompt, Text, Video
from sgl_mlx.errors import PromptError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.image import DEFAULT, open_image
from sgl_mlx.models.vision.model import Placeholder, Segment, VisionModel
from sgl_mlx.models.vision.video import read_clip
from sgl_mlx.runtime.vision.byte_lru import ByteLRU

MARK = "<image>"
"""The mark of a picture in a text for any model; a model may have a mark of its own too."""

_SHOWN = (Image, Video)

Segments = tuple[Segment, ...]
"""Segments of a prompt that stand for one picture or video; see `VisionModel.prepare_video`."""


@dataclass(frozen=True)
class PictureStats:
    """Counts of prepared pictures and videos, and the time taken, since the engine's start.

    Attributes:
        prepared_images: pictures and videos opened and processed, without those from the cache.
        open_seconds: time spent opening pictures and videos.
        process_seconds: time spent resizing and normalising pictures and frames.
        prepared_bytes: size of the cached pictures and videos now.
    """

    prepared_images: int
    open_seconds: float
    process_seconds: float
    prepared_bytes: int


class Pictures:
    """Preparation of pictures and videos for one vision model, with a cache; thread-safe.

    Args:
        vision: None for a model without vision, for which every picture is an error.
        model: name of the model in error messages.
        filler: the token that stands for a picture if the vocabulary has no token for pictures.
        limit: largest size of the cached pictures, in bytes.
        limits: bounds on each picture and video.
    """

    def __init__(
        self,
        vision: VisionModel | None,
        model: str,
        filler: int,
        limit: int,
        limits: Limits = DEFAULT,
    ) -> None:
        self._limits = limits
        self._vision = vision
        self._model = model
        self._filler = filler
        self._kept: ByteLRU[Hashable, Segments] = ByteLRU(limit)
        self._under_way: dict[Hashable, Future[Segments]] = {}
        self._lock = Lock()
        self._prepared = 0
        self._open_seconds = 0.0
        self._process_seconds = 0.0

    def token(self, part: Image | Video) -> int:
        """Return the token that stands for each of a picture's features in a prompt.

        Raises:
            PromptError: the model takes no pictures, or no videos.
        """
        holder = self._placeholder(part)
        return self._filler if holder.id is None else holder.id

    def around(self, part: Image | Video) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens that begin and end a picture; empty for a model without such tokens.

        Raises:
            PromptError: the model takes no pictures, or no videos.
        """
        holder = self._placeholder(part)
        marks = holder.before, holder.after
        begin, end = (() if mark is None else (mark[1],) for mark in marks)
        return begin, end

    def bare(self, parts: Sequence[Part]) -> list[Part]:
        """Remove the marks around pictures and videos from texts; `around` has them as tokens."""
        kept = list(parts)
        if self._vision is None:
            return kept
        begin, end = self._vision.image_token.before, self._vision.image_token.after
        for i, part in enumerate(kept):
            if isinstance(part, Text) and begin and isinstance(_at(kept, i + 1), _SHOWN):
                part = kept[i] = _cut(part, 0, len(part.text.removesuffix(begin[0])))
            if isinstance(part, Text) and end and i and isinstance(kept[i - 1], _SHOWN):
                rest = part.text.removeprefix(end[0])
                kept[i] = _cut(part, len(part.text) - len(rest), len(part.text))
        return kept

    def prepare(self, part: Image | Video, alone: bool) -> Segments:
        """Open and process a picture or video, or return it from the cache.

        Args:
            alone: True if the picture is the only picture of its prompt; ignored for a video.

        Raises:
            PromptError: the model takes no pictures, or no videos.
            ImageError: the source cannot be read; see `VisionModel.prepare` and `read_clip`.
            LimitError: the source is over a limit.
        """
        vision = self._of(part)
        count = part.num_frames if isinstance(part, Video) else int(alone)
        key = _origin(part.source), isinstance(part, Video), count
        if key[0] is None:
            return self._make(vision, part, alone)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                return kept
            is_first = key not in self._under_way
            made = self._under_way.setdefault(key, Future())
        if is_first:
            self._fulfil(made, key, lambda: self._make(vision, part, alone))
        return made.result()

    def _fulfil(self, made: Future[Segments], key: Hashable, make: Callable[[], Segments]) -> None:
        """Prepare a picture and pass it, or the error, to all threads that wait for `made`."""
        try:
            made.set_result(make())
        except BaseException as error:  # any error, or the other threads would wait for ever
            made.set_exception(error)
        with self._lock:
            del self._under_way[key]
            if made.exception() is None:
                size = sum(segment.image.pixels.nbytes for segment in made.result())
                self._kept.put(key, made.result(), size)

    def _make(self, vision: VisionModel, part: Image | Video, alone: bool) -> Segments:
        started = time.perf_counter()
        if isinstance(part, Video):
            clip = read_clip(part.source, part.num_frames, self._limits)
            opened = time.perf_counter()
            made = vision.prepare_video(clip, self._limits)
        else:
            image = open_image(part.source, self._limits)
            opened = time.perf_counter()
            made = (Segment("", vision.prepare(image, alone=alone, limits=self._limits)),)
        with self._lock:
            self._prepared += 1
            self._open_seconds += opened - started
            self._process_seconds += time.perf_counter() - opened
        return made

    def prompt(self, text: str, images: Sequence[Any]) -> Prompt:
        """Make a prompt: put pictures at the picture marks of a text, in order.

        The mark is the model's own, or `<image>`. `images` must not be empty.

        Raises:
            PromptError: the numbers of pictures and marks differ, or the model takes no pictures.
        """
        own = self._of(Image(images[0])).image_token.text
        mark = own if own in text or MARK not in text else MARK
        pieces = text.split(mark)
        if len(pieces) != len(images) + 1:
            raise PromptError(
                f"the prompt says {mark} {len(pieces) - 1} times, and there are {len(images)} "
                "pictures; say it once for each"
            )
        parts: list[Part] = [Text(pieces[0])]
        for image, piece in zip(images, pieces[1:], strict=True):
            parts += [Image(image), Text(piece)]
        return tuple(parts)

    def stats(self) -> PictureStats | None:
        """Return counts and seconds since the start; None for a model without vision."""
        if self._vision is None:
            return None
        opened, processed = self._open_seconds, self._process_seconds
        return PictureStats(self._prepared, opened, processed, self._kept.used)

    def _placeholder(self, part: Image | Video) -> Placeholder:
        vision = self._of(part)
        holder = vision.video_token if isinstance(part, Video) else vision.image_token
        assert holder is not None, "checked by `_of`"
        return holder

    def _of(self, part: Image | Video) -> VisionModel:
        if self._vision is None:
            raise PromptError(
                f"{self._model} takes no pictures; load a LLaVA or Qwen model with a vision part, "
                "or give mmproj= the vision part that belongs to it"
            )
        if isinstance(part, Video) and self._vision.video_token is None:
            raise PromptError(
                f"{self._model} takes pictures but no videos; LLaVA-OneVision and Qwen models take "
                "both"
            )
        return self._vision


def _at(parts: Sequence[Part], i: int) -> Part | None:
    return parts[i] if i < len(parts) else None


def _cut(part: Text, first: int, last: int) -> Text:
    """Return the text from `first` to `last`, with the ends of pieces that are inside."""
    ends = tuple(end - first for end in part.ends if first < end <= last)
    return Text(part.text[first:last], ends)


def _origin(source: Any) -> Hashable:
    """Return a cache key for a picture's source; None if the source cannot be read.

    The key is made of a file's path, inode, time and size, or of a hash of the content.
    """
    if isinstance(source, (str, Path)) and not str(source).startswith("data:"):
        try:
            stat = local_path(source).stat()
        except (OSError, ValueError, RuntimeError):  # opening the file later will raise the error
            return None
        return str(source), stat.st_ino, stat.st_mtime_ns, stat.st_size
    if isinstance(source, str):
        return hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
    if isinstance(source, (bytes, bytearray)):
        return hashlib.sha256(source).digest()
    try:  # a PIL.Image, which the caller may change between two calls
        return source.mode, source.size, hashlib.sha256(source.tobytes()).digest()
    except Exception:  # a broken image or no image: opening it will raise the error
        return None
