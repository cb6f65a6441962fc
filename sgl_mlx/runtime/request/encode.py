"""Encoding of prompts: from parts (text, pictures, branches) to tokens.

Text becomes tokens; a picture becomes one placeholder token, repeated. A `Shift` or `Parallel` part
cuts the prompt. What comes before the cut is computed first, by sequences of its own
(`Sequence.after`): one sequence before a `Shift`, one for each branch of a `Parallel`. In the radix
tree, the tokens after the cut have a root of their own (a namespace), named by a digest of
everything before the cut, since their KV depends on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from sgl_mlx.core import (
    Generated,
    Image,
    Parallel,
    Part,
    Prompt,
    SamplingParams,
    Text,
    Video,
)
from sgl_mlx.errors import PromptError
from sgl_mlx.runtime.cache.radix import PLAIN
from sgl_mlx.runtime.request.output import Silent
from sgl_mlx.runtime.request.part_ends import part_ends
from sgl_mlx.runtime.scheduler.sequence import Base, Constraint, Output, Picture, radix_key
from sgl_mlx.runtime.scheduler.sequence import Sequence as Seq
from sgl_mlx.runtime.vision.pictures import Pictures
from sgl_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens, and the prompts whose KV comes before these tokens.

    Args:
        tokens: the prompt's own tokens, which are the tokens after its last `Shift` or `Parallel`
            part.
        after: the prompts to compute before `tokens`. After a `Shift` it is the prompt before the
            `Shift`; after a `Parallel`, one prompt for each branch, which begins with everything
            before the branches. Empty if nothing cuts the prompt.
        trunk_length: how many leading tokens all prompts in `after` have in common.
        gap: positions skipped between `after` and the first own token.
        sealed: how many leading own tokens must not merge with text that follows.
        pictures: which own tokens stand for pictures.
        parts: lengths of prefixes of the own tokens that end where a part ends (`part_ends`).
    """

    tokens: tuple[int, ...] = ()
    after: tuple[Encoded, ...] = ()
    trunk_length: int = 0
    gap: int = 0
    sealed: int = 0
    pictures: tuple[Picture, ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Number of tokens of the whole prompt, including the prompts in `after`."""
        return self.base_length + len(self.tokens)

    @property
    def base_length(self) -> int:
        """Number of tokens of the prompts in `after`; their common leading tokens count once."""
        branches = sum(e.total - self.trunk_length for e in self.after)
        return branches + (self.trunk_length if self.after else 0)

    @property
    def end(self) -> int:
        """Position that a token appended to the prompt would have."""
        return max((e.end for e in self.after), default=0) + self.gap + len(self.tokens)

    @property
    def namespace(self) -> Hashable:
        """The radix namespace of the own tokens; within it, equal own tokens have equal KV."""
        if not self.after and not self.gap:
            return PLAIN
        parts = [(e.namespace, radix_key(e.tokens, e.pictures)) for e in self.after]
        told = repr((parts, self.trunk_length, self.gap)).encode()
        return hashlib.blake2b(told, digest_size=16).digest()

    def sequence(
        self,
        name: str,
        output: Output,
        params: SamplingParams,
        seed: int = 0,
        logprob_start: int | None = None,
        held: bool = False,
        constraint: Constraint | None = None,
        extra_key: str = "",
    ) -> Seq:
        """Make the scheduler's `Sequence` of this prompt, and one for each prompt in `after`.

        Args:
            name: id of the sequence.
            extra_key: name of the part of the cache to use; see `RequestKeywords`. The other
                arguments are fields of `Sequence`.
        """
        silent = SamplingParams(max_new_tokens=0)
        after = tuple(
            e.sequence(f"{name}.{i}", Silent(), silent, held=True, extra_key=extra_key)
            for i, e in enumerate(self.after)
        )
        return Seq(
            id=name,
            tokens=list(self.tokens),
            output=output,
            params=params,
            seed=seed,
            logprob_start=logprob_start,
            held=held,
            constraint=constraint,
            namespace=_keyed(self.namespace, extra_key),
            after=after,
            trunk_length=self.trunk_length,
            gap=self.gap,
            base=Base(origin=self.gap),
            pictures=self.pictures,
            parts=self.parts,
        )


def _keyed(namespace: Hashable, extra_key: str) -> Hashable:
    """Return the radix namespace of a prompt within the part of the cache named `extra_key`."""
    if not extra_key:
        return namespace
    return hashlib.blake2b(repr((extra_key, namespace)).encode(), digest_size=16).digest()


def encode(
    prompt: Prompt, tokenizer: Tokenizer, pictures: Pictures | None = None, ends: bool = False
) -> Encoded:
    """Encode a prompt of parts to tokens.

    Args:
        pictures: prepares the prompt's pictures; None if the prompt has no pictures.
        ends: fill `Encoded.parts`, which only models with recurrent layers need.

    Raises:
        PromptError: the prompt is empty; it has pictures or videos and the model takes none; or it
            ends in nested branches, or in a picture before the last cut.
        ImageError: a picture cannot be read.
    """
    encoded = _Encoder(tokenizer, pictures, _images(prompt) == 1, ends).encode(Encoded(), prompt)
    if not encoded.tokens and encoded.after:
        encoded = _move_last_token(encoded)
    if not encoded.tokens:
        raise PromptError("the prompt is empty: it needs at least one token")
    return encoded


def _images(prompt: Prompt) -> int:
    branches = (b for part in prompt if isinstance(part, Parallel) for b in part.branches)
    return sum(isinstance(part, Image) for part in prompt) + sum(map(_images, branches))


@dataclass(frozen=True)
class _Encoder:
    """The encoder of one prompt's parts; `alone` is True if the prompt has exactly one `Image`."""

    tokenizer: Tokenizer
    pictures: Pictures | None
    alone: bool
    ends: bool

    def encode(self, start: Encoded, parts: Sequence[Part]) -> Encoded:
        encoded = start
        if self.pictures is not None and any(isinstance(part, (Image, Video)) for part in parts):
            parts = self.pictures.bare(parts)
        for part in parts:
            before, encoded = encoded, self._append(encoded, part)
            if self.ends:
                ends = self._ends(before, part, encoded)
                encoded = replace(encoded, parts=(*encoded.parts, *ends))
        return encoded

    def _ends(self, before: Encoded, part: Part, after: Encoded) -> Iterator[int]:
        def append(tokens: tuple[int, ...], text: str) -> tuple[int, ...]:
            return extend(replace(before, tokens=tokens), text, self.tokenizer)

        return part_ends(before.tokens, part, after.tokens, append)

    def _append(self, encoded: Encoded, part: Part) -> Encoded:
        if isinstance(part, Text):
            return replace(encoded, tokens=extend(encoded, part.text, self.tokenizer))
        if isinstance(part, Generated):
            return replace(encoded, tokens=_extend_generated(encoded, part, self.tokenizer))
        if isinstance(part, (Image, Video)):
            return self._show(encoded, part)
        if isinstance(part, Parallel):
            return self._join(encoded, part)
        if not encoded.tokens:
            return replace(encoded, gap=encoded.gap + part.gap)
        return Encoded(after=(encoded,), trunk_length=encoded.total, gap=part.gap)

    def _show(self, encoded: Encoded, part: Image | Video) -> Encoded:
        """Append the placeholder tokens of a picture or video; they never merge with text after.

        If the model has tokens that begin and end a picture, they stand around the placeholders. A
        text that belongs to a video is encoded as the prompt's own text is.
        """
        assert self.pictures is not None, "a prompt with pictures, and nobody to prepare them"
        begin, end = self.pictures.around(part)
        token = self.pictures.token(part)
        for text, image in self.pictures.prepare(part, self.alone):
            before = extend(encoded, text, self.tokenizer)
            if not before and not encoded.after:
                before = tuple(self.tokenizer.encode("", add_special=True))
            tokens = (*before, *begin, *[token] * image.tokens, *end)
            shown = (*encoded.pictures, Picture(len(before) + len(begin), image))
            encoded = replace(encoded, tokens=tokens, sealed=len(tokens), pictures=shown)
        return encoded

    def _join(self, trunk: Encoded, part: Parallel) -> Encoded:
        """Append parallel branches to the trunk, which is the prompt before them.

        The trunk's tokens never merge with a branch's text. A branch without tokens is dropped.
        """
        start = replace(trunk, sealed=len(trunk.tokens))
        branches = [self.encode(start, parts) for parts in part.branches]
        branches = [branch for branch in branches if branch.total > trunk.total]
        if not branches:
            return trunk
        return Encoded(after=tuple(branches), trunk_length=trunk.total)


def extend(encoded: Encoded, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the prompt's own tokens with a text appended.

    The text may merge with own tokens after the sealed ones (`Encoded.sealed`).
    """
    if not text:
        return encoded.tokens
    sealed, open_end = encoded.tokens[: encoded.sealed], encoded.tokens[encoded.sealed :]
    if open_end:
        return (*sealed, *tokenizer.extend(open_end, text))
    first = not sealed and not encoded.after
    return (*sealed, *tokenizer.encode(text, add_special=first))


def _extend_generated(encoded: Encoded, part: Generated, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the prompt's own tokens with a generated part appended.

    The part's token ids are kept as far as they spell its text; the rest of the text is encoded.
    The text may be shorter than the token ids, as stop strings and end tokens are trimmed from it.
    """
    kept, rest = _spelling(part, tokenizer)
    if not kept:
        return extend(encoded, part.text, tokenizer)
    tokens = (*encoded.tokens, *kept)
    return extend(replace(encoded, tokens=tokens), rest, tokenizer)


def _spelling(part: Generated, tokenizer: Tokenizer) -> tuple[tuple[int, ...], str]:
    """Return the part's leading token ids that spell its text, and the rest of the text."""
    ids = part.token_ids
    if ids and ids[-1] in tokenizer.eos_token_ids:
        ids = ids[:-1]
    if tokenizer.decode(ids, at_start=False) == part.text:  # also where bytes became U+FFFD
        return ids, ""
    text = part.text.encode()
    kept, length, spelled = 0, 0, 0
    for i, token in enumerate(ids):
        piece = tokenizer.token_bytes(token)
        if not text.startswith(piece, spelled):
            break
        spelled += len(piece)
        if _at_boundary(text, spelled):
            kept, length = i + 1, spelled
    return ids[:kept], text[length:].decode()


def _at_boundary(text: bytes, at: int) -> bool:
    """Return True if index `at` is between two characters of UTF-8 text."""
    return at == len(text) or text[at] & 0xC0 != 0x80


def _move_last_token(encoded: Encoded) -> Encoded:
    """Move the last token of the prompts in `after` to the prompt's own tokens, which are empty.

    The token comes from the last of these prompts. A prompt needs an own token (`Encoded.tokens`),
    because the model predicts the first output token from the last own token.

    Raises:
        PromptError: the last prompt in `after` has no own token, or ends in a picture.
    """
    *others, last = encoded.after
    if not last.tokens:
        raise PromptError("a prompt cannot end in nested parallel branches; add text after them")
    if any(picture.end == len(last.tokens) for picture in last.pictures):
        raise PromptError("a prompt cannot end in a picture in a branch; add text after it")
    shorter = replace(last, tokens=last.tokens[:-1])
    after = (*others, shorter) if shorter.total > encoded.trunk_length else tuple(others)
    if not after:
        return last
    return replace(encoded, tokens=last.tokens[-1:], after=after)
