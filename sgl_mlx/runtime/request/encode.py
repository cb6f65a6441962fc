"""From a prompt of parts to the tokens of a sequence and what it comes after.

Ordinary text becomes plain tokens, a picture a run of one token that stands for it. A `Shift` or a
`Parallel` part cuts the prompt: what stands before it becomes sequences of their own, computed
first, whose KV the rest builds on (`Sequence.after`). The radix namespace of the rest is a digest
of all that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
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
from sgl_mlx.runtime.scheduler.sequence import Base, Constraint, Output, Picture, radix_key
from sgl_mlx.runtime.scheduler.sequence import Sequence as Seq
from sgl_mlx.runtime.vision.pictures import Pictures
from sgl_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens, after other prompts.

    Args:
        tokens: its own, those after the last cut.
        after: what must be computed before, each in full.
        trunk_length: how many leading keys those have in common.
        gap: positions left out between them and the first own token.
        sealed: how many of the tokens must not merge with text that follows.
        pictures: which of the tokens stand for pictures.
    """

    tokens: tuple[int, ...] = ()
    after: tuple[Encoded, ...] = ()
    trunk_length: int = 0
    gap: int = 0
    sealed: int = 0
    pictures: tuple[Picture, ...] = ()

    @property
    def total(self) -> int:
        """Keys of the whole prompt."""
        return self.base_length + len(self.tokens)

    @property
    def base_length(self) -> int:
        branches = sum(e.total - self.trunk_length for e in self.after)
        return branches + (self.trunk_length if self.after else 0)

    @property
    def end(self) -> int:
        """The position after the last token."""
        return max((e.end for e in self.after), default=0) + self.gap + len(self.tokens)

    @property
    def namespace(self) -> Hashable:
        """Equal for prompts whose own tokens have equal KV if they are equal."""
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
    ) -> Seq:
        """A sequence for the scheduler, with those it comes after; see `Sequence`."""
        silent = SamplingParams(max_new_tokens=0)
        after = tuple(
            e.sequence(f"{name}.{i}", Silent(), silent, held=True) for i, e in enumerate(self.after)
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
            namespace=self.namespace,
            after=after,
            trunk_length=self.trunk_length,
            gap=self.gap,
            base=Base(origin=self.gap),
            pictures=self.pictures,
        )


def encode(prompt: Prompt, tokenizer: Tokenizer, pictures: Pictures | None = None) -> Encoded:
    """Tokens of a prompt.

    Args:
        pictures: prepares those of the prompt; None if it has none.

    Raises:
        PromptError: when there is nothing to compute, or the model takes no pictures.
        ImageError: a picture cannot be read.
    """
    encoded = _Encoder(tokenizer, pictures, _images(prompt) == 1).encode(Encoded(), prompt)
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
    """Encodes the parts of one prompt; `alone` is true if it has one picture only."""

    tokenizer: Tokenizer
    pictures: Pictures | None
    alone: bool

    def encode(self, start: Encoded, parts: Sequence[Part]) -> Encoded:
        encoded = start
        for part in parts:
            encoded = self._append(encoded, part)
        return encoded

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
        """A picture's tokens merge with nothing around them."""
        assert self.pictures is not None, "a prompt with pictures, and nobody to prepare them"
        image = self.pictures.prepare(part, self.alone)
        before = encoded.tokens
        if not before and not encoded.after:
            before = tuple(self.tokenizer.encode("", add_special=True))
        tokens = (*before, *[self.pictures.token(part)] * image.tokens)
        picture = Picture(len(before), image)
        shown = (*encoded.pictures, picture)
        return replace(encoded, tokens=tokens, sealed=len(tokens), pictures=shown)

    def _join(self, trunk: Encoded, part: Parallel) -> Encoded:
        """Branches start at a token boundary, so that all of them agree in the trunk."""
        start = replace(trunk, sealed=len(trunk.tokens))
        branches = [self.encode(start, parts) for parts in part.branches]
        branches = [branch for branch in branches if branch.total > trunk.total]
        if not branches:
            return trunk
        return Encoded(after=tuple(branches), trunk_length=trunk.total)


def extend(encoded: Encoded, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt's own tokens with a text behind them; what is sealed stays."""
    if not text:
        return encoded.tokens
    sealed, open_end = encoded.tokens[: encoded.sealed], encoded.tokens[encoded.sealed :]
    if open_end:
        return (*sealed, *tokenizer.extend(open_end, text))
    first = not sealed and not encoded.after
    return (*sealed, *tokenizer.encode(text, add_special=first))


def _extend_generated(encoded: Encoded, part: Generated, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens the model chose, as far as they spell the text; the rest is encoded anew.

    Trimmed stop strings and end tokens are not in the text.
    """
    kept, rest = _spelling(part, tokenizer)
    if not kept:
        return extend(encoded, part.text, tokenizer)
    tokens = (*encoded.tokens, *kept)
    return extend(replace(encoded, tokens=tokens), rest, tokenizer)


def _spelling(part: Generated, tokenizer: Tokenizer) -> tuple[tuple[int, ...], str]:
    """Tokens that spell a beginning of the text, and what is left of it."""
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
    """No character of UTF-8 text reaches across."""
    return at == len(text) or text[at] & 0xC0 != 0x80


def _move_last_token(encoded: Encoded) -> Encoded:
    """Nothing follows the cut: its last token is computed again, seeing all branches."""
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
