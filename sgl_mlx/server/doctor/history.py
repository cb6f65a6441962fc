"""The last prompts, each compared with the nearest earlier prompt in its part of the cache.

The nearest prompt is the one with the longest common prefix.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_mlx.core import Generated, Image, Parallel, Prompt, Text, Video
from sgl_mlx.server.doctor.culprits import EVICTED, FIRST, OTHER, Cause, cause_of

_PROMPTS = 256
_CHARACTERS = 16_000_000
_SIDE = 60
_SLACK = 32
"""Tokens of a prefix that may be missing from the cache before the prefix counts as evicted.

Also the least number of computed tokens from which the time for each token is measured.
"""

Content = str | tuple[int, ...]


@dataclass(eq=False)
class Seen:
    """A prompt, and where it stops matching the nearest earlier prompt (the break).

    Attributes:
        id: the request's id.
        owner: name of the part of the cache that the prompt used.
        content: the prompt's text, or its token ids if the request gave token ids.
        began: Unix time at which the prompt came.
        conversation: id of the first prompt of the conversation. A prompt that repeats at least
            half of `nearest` is in the same conversation as `nearest`.
        nearest: id of the earlier prompt with the longest common prefix; None if no earlier prompt
            begins alike.
        at: length of the common prefix, in characters or token ids.
        cause: why the two prompts differ from `at` on.
        before, after: the text around the break, in the earlier prompt and in this prompt.
        lost: share of the earlier prompt that lies after the break, from 0 to 1.
        prompt_tokens, cached_tokens: the engine's counts; None until the engine answered.
        seconds: time to the first token of a streamed answer, else 0.
        cost: estimated seconds spent on text that could have been reused; None if `cause` wastes
            nothing or the engine's speed is not known yet.
    """

    id: str
    owner: str
    content: Content
    began: float = field(default_factory=time.time)
    conversation: str = ""
    nearest: str | None = None
    at: int = 0
    cause: Cause = FIRST
    before: str = ""
    after: str = ""
    lost: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    seconds: float = 0.0
    cost: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that `/cache` shows of this prompt."""
        shown = {k: v for k, v in vars(self).items() if k not in ("content", "owner", "cause")}
        return {**shown, "because": self.cause.name, "advice": self.cause.advice}


class History:
    """The last prompts of a server, bounded in number and in characters; thread-safe.

    Args:
        log: file to which each answered prompt is appended as a line of JSON; None for none.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._seen: deque[Seen] = deque()
        self._size = 0
        self._rate = 0.0
        self._lock = threading.Lock()

    def add(self, id: str, owner: str, prompt: Prompt | Sequence[int]) -> Seen:
        """Compare a prompt with the earlier prompts, and store and return the result.

        Args:
            owner: name of the part of the cache that the prompt uses.
        """
        seen = Seen(id, owner, content_of(prompt))
        with self._lock:
            self._compare(seen)
            self._seen.append(seen)
            self._size += len(seen.content)
            while len(self._seen) > 1 and (self._size > _CHARACTERS or len(self._seen) > _PROMPTS):
                self._size -= len(self._seen.popleft().content)
        return seen

    def found(self, seen: Seen, prompt_tokens: int, cached_tokens: int, seconds: float) -> None:
        """Store the engine's counts for a prompt, update its cause and cost, and log it.

        Args:
            seconds: time to the first token of a streamed answer, else 0.
        """
        with self._lock:
            seen.prompt_tokens, seen.cached_tokens, seen.seconds = (
                prompt_tokens,
                cached_tokens,
                seconds,
            )
            computed = prompt_tokens - cached_tokens
            if seconds and computed >= _SLACK:
                self._rate = seconds / computed
            if seen.nearest is not None and self._missing(seen) > _SLACK:
                seen.cause = EVICTED
            if seen.cause.wasted and self._rate:
                lost = self._missing(seen) if seen.cause is EVICTED else seen.lost * prompt_tokens
                seen.cost = round(self._rate * min(lost, computed), 3)
            if self._log is not None:
                with open(self._log, "a", opener=_owner_only) as file:
                    file.write(json.dumps(log_line(seen)) + "\n")

    def shown(self, owner: str) -> list[Seen]:
        """Return the prompts of one part of the cache, oldest first."""
        with self._lock:
            return [seen for seen in self._seen if seen.owner == owner]

    def of_client(self, client: str) -> list[Seen]:
        """Return the prompts of one client in all its parts of the cache, oldest first."""
        with self._lock:
            return [seen for seen in self._seen if _client(seen.owner) == client]

    def told(self, prompts: Sequence[Seen]) -> str:
        """Return the value of the header `x-sgl-cache` for the prompts of one request.

        `hit` is `cached tokens/all tokens`, summed over the prompts. `miss_at` is the number of
        cached tokens of the first prompt, and `because` names its cause. A "?" stands for unknown
        counts.
        """
        first = prompts[0]
        known = [seen for seen in prompts if seen.prompt_tokens is not None]
        hit, miss_at = "?", "?"
        if len(known) == len(prompts):
            cached = sum(seen.cached_tokens or 0 for seen in known)
            hit = f"{cached}/{sum(seen.prompt_tokens or 0 for seen in known)}"
            miss_at = str(first.cached_tokens)
        return f"hit={hit};miss_at={miss_at};because={first.cause.name}"

    def _compare(self, seen: Seen) -> None:
        seen.conversation = seen.id
        at, old = self._nearest(seen)
        if old is None:
            return
        seen.nearest, seen.at = old.id, at
        seen.lost = 1 - at / len(old.content)
        if 2 * at >= len(old.content):
            seen.conversation = old.conversation
        if isinstance(old.content, str) and isinstance(seen.content, str):
            seen.cause = cause_of(old.content, seen.content, at)
            seen.before, seen.after = (_around(text, at) for text in (old.content, seen.content))
        else:
            seen.cause = cause_of("", "", 0) if not seen.lost else OTHER

    def _nearest(self, seen: Seen) -> tuple[int, Seen | None]:
        """Return the length of the longest common prefix and the earlier prompt that shares it.

        Without such a prompt, returns `(0, None)`.
        """
        content, most, nearest = seen.content, 0, None
        for old in reversed(self._seen):
            if old.owner != seen.owner or not isinstance(old.content, type(content)):
                continue
            # with a common prefix longer than `most`, both agree at index `most`
            if old.content[most : most + 1] != content[most : most + 1]:
                continue
            if (length := shared(old.content, content)) > most:
                most, nearest = length, old
        return most, nearest

    def _missing(self, seen: Seen) -> float:
        """Estimate how many tokens of the common prefix were not in the cache."""
        share = seen.at / max(len(seen.content), 1)
        return share * (seen.prompt_tokens or 0) - (seen.cached_tokens or 0)


def content_of(prompt: Prompt | Sequence[int]) -> Content:
    """Return a prompt's text, in which a digest stands for each picture; token ids as a tuple."""
    if len(prompt) and hasattr(prompt[0], "__index__"):
        return tuple(int(token) for token in prompt)  # type: ignore[arg-type]
    return "".join(_texts(prompt))  # type: ignore[arg-type]


def _texts(prompt: Prompt) -> Iterator[str]:
    for part in prompt:
        if isinstance(part, (Text, Generated)):
            yield part.text
        elif isinstance(part, (Image, Video)):
            digest = hashlib.blake2b(str(part.source).encode(), digest_size=6).hexdigest()
            yield f"<picture {digest}>"
        elif isinstance(part, Parallel):
            for branch in part.branches:
                yield from _texts(branch)


def shared(a: Content, b: Content) -> int:
    """Return the length of the common prefix of two texts, or of two tuples of token ids."""
    at, step = 0, 4096
    limit = min(len(a), len(b))
    while at < limit and a[at : at + step] == b[at : at + step]:
        at += step
    while step > 1:
        step //= 2
        if at < limit and a[at : at + step] == b[at : at + step]:
            at += step
    return min(at, limit)


def _owner_only(path: str, flags: int) -> int:
    """Open a file and return its descriptor; a new file can be read by its owner alone."""
    return os.open(path, flags, 0o600)


def log_line(seen: Seen) -> dict[str, Any]:
    """Return one prompt's entry in the log, as `replay.replayed` reads it."""
    names = ("id", "owner", "began", "prompt_tokens", "cached_tokens", "seconds")
    return {"prompt": seen.content, **{name: getattr(seen, name) for name in names}}


def _client(owner: str) -> str:
    return str(json.loads(owner)[0]) if owner else ""


def _around(text: str, at: int) -> str:
    return text[max(at - _SIDE, 0) : at + _SIDE]
