"""Conversion of text to tokens and back with the `tokenizers` library, without models or MLX.

Tokens are decoded to bytes, and the bytes to text. So the text is the same whether it is decoded at
once or in pieces, even if a token ends inside a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer import chat, files
from sgl_mlx.tokenizer.bytes import Speller, unknown_token, without_prefix_space

_WINDOW = 64
"""Most tokens at the end that `extend` tokenizes again."""

_LONG = 2000
"""Fewest characters of a text that is encoded without holding the GIL."""


class Tokenizer:
    """One model's tokenizer.

    Args:
        backend: the tokenizer of the `tokenizers` library.
        bos_token_id: the begin-of-sequence token, if the vocabulary has one.
        eos_token_ids: all tokens that end an answer.
        prefix_ids: tokens that `encode` puts before a text.
        chat_template: Jinja source of the model's chat template; None if it has none.
        special_tokens: texts of `bos_token`, `eos_token`, `pad_token` and so on for the template;
            None gives those of `bos_token` and `eos_token`.

    Attributes:
        limits: bounds on chat templates; an engine sets its own.

    Raises:
        TokenizerError: the tokenizer is neither byte-level nor SentencePiece-like.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
        prefix_ids: Sequence[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.vocab_size: int = 1 + max(backend.get_vocab().values(), default=-1)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = frozenset(eos_token_ids)
        self.chat_template = chat_template
        self.limits = chat.DEFAULT
        self._special_tokens = special_tokens
        self._prefix_ids = list(prefix_ids)
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._special |= unknown_token(backend)
        self._speller = Speller(backend)
        self._inner, self._prefix_space = without_prefix_space(backend)

    @classmethod
    def from_file(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a model folder in Hugging Face's layout.

        Raises:
            TokenizerError: `tokenizer.json` is missing, or a tokenizer file is invalid.
        """
        return cls(**files.read_folder(Path(folder)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer that a GGUF file's `tokenizer.*` metadata describes.

        Raises:
            TokenizerError: the description is missing, invalid or of an unknown kind.
        """
        # only GGUF files need the conversion, and it needs no part of this class
        from sgl_mlx.tokenizer import gguf

        return cls(**gguf.read_metadata(metadata))

    # -- text to tokens -----------------------------------------------------------------------

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Return the tokens of a text; special tokens written in the text are recognised.

        With `add_special`, the model's prefix tokens (mostly BOS) come first, unless the text
        already starts with BOS.
        """
        ids = _encode(self.backend, text)
        if not add_special or (ids and ids[0] == self.bos_token_id):
            return ids
        return self._prefix_ids + ids

    def extend(self, ids: Sequence[int], text: str) -> list[int]:
        """Return `ids` continued by `text`, with as many tokens of `ids` unchanged as possible.

        The last tokens of `ids`, at most 64, are tokenized again together with `text`. If a new
        token begins exactly where `ids` end, all `ids` stay. If none does, the result switches from
        old to new tokens at the last place where a token ends in both. Special tokens are never
        changed. The time to tokenize does not depend on the length of `ids`.

        For byte-level BPE the result equals `encode(a + text)` if `ids == encode(a)`, a word starts
        in the last 64 tokens of `ids`, and `a` does not end in a run of white space.
        """
        if not text:
            return list(ids)
        if not ids or list(ids[: len(self._prefix_ids) + 1]) == self._prefix_ids:
            return list(ids) + self.encode(text, add_special=not ids)
        if ids[-1] in self._added and self._prefix_space == "always":
            return [*ids, *self.encode(text, add_special=False)]
        start = self._restart(ids)
        tail = [self.token_bytes(i) for i in ids[start:]]
        try:
            tail_text = b"".join(tail).decode()
        except UnicodeDecodeError:  # ids end inside a character: nothing can merge with it
            return [*ids, *self._encode_inner(text)]
        fresh = self._encode_inner(tail_text + text)
        pieces = [self.token_bytes(i) for i in fresh]
        if b"".join(pieces) != (tail_text + text).encode():  # the normalizer rewrote the text
            return [*ids, *self._encode_inner(text)]
        kept, dropped = _last_common_boundary(tail, pieces)
        return [*ids[: start + kept], *fresh[dropped:]]

    def encode_plain(self, text: str) -> list[int]:
        """Return the tokens of text that continues other text; no text becomes a special token."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    def _encode_inner(self, text: str) -> list[int]:
        return _encode(self._inner, text)

    def _restart(self, ids: Sequence[int]) -> int:
        """Find the index in `ids` from which to tokenize again.

        The index is after the last added token or at the start of the last word, if that is among
        the last `_WINDOW` tokens; else at the first of these tokens that begins with a whole
        character. Every pre-tokenizer in use splits before a space that follows other characters,
        and none looks behind, so the tokens before a word's start never change.
        """
        earliest = max(0, len(ids) - _WINDOW)
        clean = len(ids)
        for start in range(len(ids) - 1, earliest - 1, -1):
            if ids[start] in self._added:
                return start + 1
            spelled = self.token_bytes(ids[start])
            if not _starts_inside_character(spelled):
                clean = start
            before = self.token_bytes(ids[start - 1]) if start else b"\n"
            if spelled[:1] == b" " and not before[-1:].isspace():
                return start
        return clean

    # -- tokens to text -----------------------------------------------------------------------

    def decode(self, ids: Sequence[int], skip_special: bool = True, at_start: bool = True) -> str:
        """Return the text of tokens; bytes that are not valid UTF-8 become U+FFFD.

        Args:
            skip_special: leave out special tokens.
            at_start: True if the tokens begin a text; then the space that some tokenizers add is
                removed.
        """
        spell = self.detokenizer(skip_special, at_start)
        return "".join(map(spell.add, ids)) + spell.finish()

    def detokenizer(
        self, skip_special: bool = True, at_start: bool = False, constrained: bool = False
    ) -> Detokenizer:
        """Return an incremental decoder; by default for tokens that continue a text.

        Args:
            skip_special: leave out special tokens.
            at_start: as in `decode`.
            constrained: with `skip_special`, leave out end tokens only. Other special tokens occur
                in constrained output only if the constraint names them, so they belong to the text.
        """
        skipped = self.eos_token_ids if constrained else self._special
        hidden = skipped if skip_special else frozenset()
        strip = at_start and self._prefix_space != "never"
        return Detokenizer(self._speller, hidden, strip)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token spells; empty for an id outside the vocabulary."""
        return self._speller[token_id]

    def is_special(self, token_id: int) -> bool:
        """Return True for a special token, such as BOS, and for the unknown token."""
        return token_id in self._special

    def added_token(self, text: str) -> int | None:
        """Return the id of the added token with exactly this text; None if there is none."""
        token = self.backend.token_to_id(text)
        return token if token in self._added else None

    def token_text(self, token_id: int) -> str:
        """Return the text of a single token; an incomplete character becomes U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    # -- conversations ------------------------------------------------------------------------

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        """Render chat messages to a prompt by the model's chat template.

        Contents that are strings are passed as lists of parts if the template needs lists.

        Args:
            add_generation_prompt: end with the beginning of the assistant's answer.
            kwargs: further variables for the template.

        Raises:
            PromptError: `messages` is not a list of dictionaries, or contains invalid text.
            TokenizerError: there is no template, or the template rejects the messages.
            LimitError: the template takes too long, or makes too much text.
        """
        messages = chat.checked(messages)
        if self.chat_template is None:
            raise TokenizerError(
                "the model has no chat template; write the prompt as plain text, with <image> "
                "where a picture stands"
            )
        variables = {
            **self.named_tokens(),
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **kwargs,
        }
        if chat.takes_parts(self.chat_template, self.limits):
            messages = [chat.in_parts(message) for message in messages]
        return chat.render(self.chat_template, messages, variables, self.limits)

    def named_tokens(self) -> dict[str, str]:
        """Return the texts of special tokens by name, such as `bos_token`; without missing ones."""
        if self._special_tokens is not None:
            return dict(self._special_tokens)
        ids = {"bos_token": self.bos_token_id, "eos_token": min(self.eos_token_ids, default=None)}
        return {name: self.token_text(i) for name, i in ids.items() if i is not None}


class Detokenizer:
    """Incremental decoder: returns the text of each token as soon as its characters are complete.

    Args:
        speller: the bytes of each token.
        hidden: tokens whose text is left out.
        strip_space: remove one space from the beginning of the text.
    """

    def __init__(self, speller: Speller, hidden: frozenset[int], strip_space: bool) -> None:
        self._speller = speller
        self._hidden = hidden
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """Return the text that is complete with this token; empty if a character is unfinished."""
        if token_id in self._hidden:
            return ""
        spelled = self._speller[token_id]
        if self._strip_space and spelled:
            self._strip_space = False
            spelled = spelled.removeprefix(b" ")
        return self._decoder.decode(spelled)

    @property
    def complete(self) -> bool:
        """True if the text so far ends with a complete character."""
        return not self._decoder.getstate()[0]

    def finish(self) -> str:
        """Return U+FFFD if the last character is incomplete, else an empty text."""
        return self._decoder.decode(b"", final=True)


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encode a text; for a long text a batch call is used, which releases the GIL."""
    if len(text) < _LONG:
        encoded = backend.encode(text, add_special_tokens=False)
    else:
        [encoded] = backend.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoded.ids
    return ids


def _last_common_boundary(left: Sequence[bytes], right: Sequence[bytes]) -> tuple[int, int]:
    """Find the last place where a piece of `left` and a piece of `right` both end.

    The joined `left` must be a prefix of the joined `right`.

    Returns:
        The numbers of pieces of `left` and `right` before this place; (0, 0) if there is none.
    """
    common = (0, 0)
    i = j = left_end = right_end = 0
    while i < len(left) and j < len(right):
        if left_end <= right_end:
            left_end += len(left[i])
            i += 1
        else:
            right_end += len(right[j])
            j += 1
        while right_end < left_end and j < len(right):
            right_end += len(right[j])
            j += 1
        if left_end == right_end:
            common = (i, j)
    return common


def _starts_inside_character(spelled: bytes) -> bool:
    return bool(spelled) and spelled[0] & 0xC0 == 0x80
