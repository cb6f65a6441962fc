"""Text to tokens and back, over the `tokenizers` library. Knows no model and no mlx.

Everything that joins or splits works on the bytes a token spells, so that pieces of a stream,
tokens split inside a character and continued prompts all agree with each other.
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
"""Tokens that `extend` looks back for a place where no token can reach across."""

_LONG = 2000
"""From so many characters on a text is encoded without the GIL."""


class Tokenizer:
    """One model's tokenizer.

    Args:
        backend: the tokenizer itself; public, for libraries that need `backend.to_str()`.
        bos_token_id: the begin-of-sequence token, if the vocabulary has one.
        eos_token_ids: every token that ends an answer.
        prefix_ids: what `encode` puts before a text.
        chat_template: the Jinja source of the model's own template.
        special_tokens: what the template finds under `bos_token`, `eos_token`, `pad_token` and so
            on; by default the texts of the first two, by their ids.
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
        """Read `tokenizer.json` and the files beside it, in Hugging Face's layout.

        Raises:
            TokenizerError: when `tokenizer.json` is missing or cannot be read.
        """
        return cls(**files.read_folder(Path(folder)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer a GGUF file describes in its `tokenizer.*` metadata.

        Raises:
            TokenizerError: when it is missing, broken or of a kind we cannot build.
        """
        # only GGUF files need the conversion, and it needs no part of this class
        from sgl_mlx.tokenizer import gguf

        return cls(**gguf.read_metadata(metadata))

    # -- text to tokens -----------------------------------------------------------------------

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Return the tokens of a text; special tokens written in it are recognised.

        With `add_special` the model's own beginning (mostly its BOS token, if any) goes first,
        unless the text already starts with BOS.
        """
        ids = _encode(self.backend, text)
        if not add_special or (ids and ids[0] == self.bos_token_id):
            return ids
        return self._prefix_ids + ids

    def extend(self, ids: Sequence[int], text: str) -> list[int]:
        """Return `ids` followed by the tokens of `text`, keeping `ids` wherever both can agree.

        The last tokens are spelled out and tokenized again together with `text`. If the new
        tokens have a boundary where `ids` end, `ids` stay whole; if a token of theirs would
        reach across, the result follows the new tokens from the last boundary both have in
        common. Special tokens are never touched. The cost depends on `text` alone.

        For byte-level BPE, if `ids == encode(a)`, a word starts in the last 64 tokens of `ids`
        and `a` does not end in a run of white space (which the pre-tokenizer would cut anew, so
        that `ids` are kept instead), the result equals `encode(a + text)`: up to a boundary
        both sides have, no merge crossed it, so each side merged as it does alone.
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
        """Return the tokens of text inside a document in which no special token is recognised."""
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
        """Find where to start tokenizing again: after a special token or before the last word.

        Every pre-tokenizer in use splits before a space that follows anything but white space,
        and none looks behind, so what comes before such a place never changes.
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
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD.

        `at_start` says that a text begins here, so that the space some tokenizers put before
        every text is taken away again.
        """
        spell = self.detokenizer(skip_special, at_start)
        return "".join(map(spell.add, ids)) + spell.finish()

    def detokenizer(self, skip_special: bool = True, at_start: bool = False) -> Detokenizer:
        """Return an incremental `decode`, by default of tokens that follow others."""
        hidden = self._special if skip_special else frozenset()
        strip = at_start and self._prefix_space != "never"
        return Detokenizer(self._speller, hidden, strip)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token spells; empty for an id outside the vocabulary."""
        return self._speller[token_id]

    def is_special(self, token_id: int) -> bool:
        """Return True if a token marks something instead of spelling text."""
        return token_id in self._special

    def added_token(self, text: str) -> int | None:
        """Return the token that was added to the vocabulary for exactly this text, if any."""
        token = self.backend.token_to_id(text)
        return token if token in self._added else None

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone; a part of a character is U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    # -- conversations ------------------------------------------------------------------------

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        """Write the conversation by the model's own template, which `kwargs` reach too.

        A content that is a string is handed to it as a list of parts if that is what it knows.

        Raises:
            PromptError: for messages that are no list of dictionaries, or hold no valid text.
            TokenizerError: when there is no template, or it rejects the messages.
        """
        messages = chat.checked(messages)
        if self.chat_template is None:
            raise TokenizerError(
                "the model has no chat template; write the prompt as plain text, with <image> "
                "where a picture stands"
            )
        variables = {
            **self._named_tokens(),
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **kwargs,
        }
        if chat.takes_parts(self.chat_template):
            messages = [chat.in_parts(message) for message in messages]
        return chat.render(self.chat_template, messages, variables)

    def _named_tokens(self) -> dict[str, str]:
        """Return `bos_token` and its like for a template; those the model lacks stay undefined."""
        if self._special_tokens is not None:
            return dict(self._special_tokens)
        ids = {"bos_token": self.bos_token_id, "eos_token": min(self.eos_token_ids, default=None)}
        return {name: self.token_text(i) for name, i in ids.items() if i is not None}


class Detokenizer:
    """Text of a growing sequence of tokens, each piece as soon as its characters are whole."""

    def __init__(self, speller: Speller, hidden: frozenset[int], strip_space: bool) -> None:
        self._speller = speller
        self._hidden = hidden
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """Return the text that this token completes; empty inside a character."""
        if token_id in self._hidden:
            return ""
        spelled = self._speller[token_id]
        if self._strip_space and spelled:
            self._strip_space = False
            spelled = spelled.removeprefix(b" ")
        return self._decoder.decode(spelled)

    @property
    def complete(self) -> bool:
        """True if the text so far ends with a whole character."""
        return not self._decoder.getstate()[0]

    def finish(self) -> str:
        """Return the rest of an unfinished character as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encode a text; a long one without the GIL, which `encode` holds throughout."""
    if len(text) < _LONG:
        encoded = backend.encode(text, add_special_tokens=False)
    else:
        [encoded] = backend.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoded.ids
    return ids


def _last_common_boundary(left: Sequence[bytes], right: Sequence[bytes]) -> tuple[int, int]:
    """Count the pieces of each that make the longest text that both have a boundary after.

    `left` spells a prefix of what `right` spells; (0, 0) is always common.
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
