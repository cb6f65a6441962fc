"""The bytes that a token spells, and tokenizing of text that continues other text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Literal

import tokenizers

from sgl_mlx.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Speller(dict[int, bytes]):
    """Mapping from token id to the bytes that the token spells, computed on first access.

    Ids outside the vocabulary spell b"". Decoding, token healing and grammars all use this mapping.
    A vocabulary counts as byte-level if the decoder, the normalizer or the pre-tokenizer has a
    ByteLevel step: some converted tokenizers have a decoder of the wrong kind.

    Raises:
        TokenizerError: the tokenizer is neither byte-level nor SentencePiece-like.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend
        parts = _parts(backend)
        decoding = list(_steps(parts["decoder"]))
        making = [*_steps(parts["normalizer"]), *_steps(parts["pre_tokenizer"])]
        kinds = {step["type"] for step in decoding}
        added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        if "ByteLevel" in kinds | {step["type"] for step in making}:
            self._spell = _spell_byte_level
            self._added = {i: content.encode() for i, content in added.items()}
        elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
            spaces = _spaces(decoding)
            self._spell = partial(_spell_sentencepiece, spaces)
            self._added = {i: _unspaced(content, spaces) for i, content in added.items()}
        else:
            raise TokenizerError(
                f"cannot tell the bytes of tokens from the decoder {sorted(map(str, kinds))}; "
                "expected a ByteLevel or a SentencePiece-like (Metaspace, ByteFallback) decoder"
            )

    def __missing__(self, token_id: int) -> bytes:
        if token_id in self._added:
            spelled = self._added[token_id]
        else:
            token = self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
            spelled = b"" if token is None else self._spell(token)
        self[token_id] = spelled
        return spelled


def _spell_byte_level(token: str) -> bytes:
    alphabet = byte_level_alphabet()
    return b"".join(alphabet.get(c) or c.encode() for c in token)


def _spell_sentencepiece(spaces: Sequence[tuple[str, str]], token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return _unspaced(token, spaces)


def _unspaced(token: str, spaces: Sequence[tuple[str, str]]) -> bytes:
    for mark, text in spaces:
        token = token.replace(mark, text)
    return token.encode()


def _spaces(decoding: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the `(mark, text)` pairs that the decoder replaces: usually a space for `▁`."""
    found = []
    for step in decoding:
        if step["type"] == "Metaspace":
            found.append((step["replacement"], " "))
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            found.append((step["pattern"]["String"], step["content"]))
    return found or [("▁", " ")]


@cache
def byte_level_alphabet() -> dict[str, bytes]:
    """Map characters to bytes as byte-level BPE (GPT-2) does: one character for each of 256 bytes.

    A printable byte has the character of the same code. Other bytes have characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in printable]
    pairs = [(b, b) for b in printable] + [(0x100 + n, b) for n, b in enumerate(hidden)]
    return {chr(code): bytes([b]) for code, b in pairs}


def unknown_token(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Return the id of the unknown token as a set; empty if the model has none."""
    name = getattr(backend.model, "unk_token", None)
    token = None if name is None else backend.token_to_id(name)
    return frozenset() if token is None else frozenset({token})


PrefixSpace = Literal["never", "first", "always"]
"""Where a tokenizer adds a space: nowhere, before a text, or also after every special token."""


def without_prefix_space(
    backend: tokenizers.Tokenizer,
) -> tuple[tokenizers.Tokenizer, PrefixSpace]:
    """Return a tokenizer that adds no space before a text, and the place where `backend` adds one.

    SentencePiece-like tokenizers add a space before every text. Text that continues other text must
    not get this space. If `backend` adds no space, `backend` itself is returned.
    """
    parts = _parts(backend)
    steps = [*_steps(parts["pre_tokenizer"]), *_steps(parts["normalizer"])]
    found = {_prefix_space(step) for step in steps} - {"never"}
    if not found:
        return backend, "never"
    whole = json.loads(backend.to_str())
    for part in ("pre_tokenizer", "normalizer"):
        for step in _steps(whole[part]):
            _silence(step)
    inner = tokenizers.Tokenizer.from_str(json.dumps(whole))
    return inner, "always" if "always" in found else "first"


def _prefix_space(step: dict[str, Any]) -> PrefixSpace:
    if step["type"] == "Prepend":
        return "always"
    if "prepend_scheme" in step:
        scheme: PrefixSpace = step["prepend_scheme"]
        return scheme
    return "always" if step.get("add_prefix_space") else "never"


def _silence(step: dict[str, Any]) -> None:
    if step["type"] == "Prepend":
        step.clear()
        step.update(type="Sequence", normalizers=[])
    if step.get("add_prefix_space"):
        step["add_prefix_space"] = False
    if "prepend_scheme" in step:
        step["prepend_scheme"] = "never"


def _parts(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return normalizer, pre-tokenizer and decoder by name, as dictionaries; None if not set."""
    names = ("normalizer", "pre_tokenizer", "decoder")
    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    for name in names:
        if (part := getattr(backend, name)) is not None:
            setattr(bare, name, part)
    return {name: json.loads(bare.to_str())[name] for name in names}


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of a tokenizer; the part may be None or a nested Sequence."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for child in next(value for value in part.values() if isinstance(value, list)):
        yield from _steps(child)
