"""No key twice in a JSON object: what a grammar cannot say about keys that it leaves open."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgl_mlx.runtime.constraints.constraint import Constraint

_QUOTE, _ESCAPE = ord('"'), ord("\\")


class UniqueKeys(Constraint):
    """A JSON grammar that also keeps a key from being written a second time.

    Where a schema leaves only keys that the object has, one is repeated: the text stays valid, and
    readers of JSON take the later value.

    Args:
        inner: the grammar alone.
        spelled: the bytes of every token.
        closing: the tokens with a quotation mark in them, which alone can end a key.
    """

    def __init__(
        self, inner: Constraint, spelled: Sequence[bytes], closing: NDArray[np.intp]
    ) -> None:
        super().__init__(inner._matcher)
        self._spelled = spelled
        self._closing = closing
        self._place = _Place()

    def allowed(self) -> bytes:
        mask = super().allowed()
        if not self._place.at_key:
            return mask
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        for token in self._closing[bits[self._closing] == 1].tolist():
            bits[token] = not self._place.repeats(self._spelled[token])
        return np.packbits(bits, bitorder="little").tobytes() if bits.any() else mask

    def accept(self, token: int) -> None:
        super().accept(token)
        self._place.read(self._spelled[token])

    def forced(self) -> list[int]:
        taken = super().forced()
        for token in taken:
            self._place.read(self._spelled[token])
        return taken


class _Place:
    """Where in a JSON text we are: the keys of every open object, and the string being read."""

    def __init__(self) -> None:
        self._open: list[set[str] | None] = []  # None for an array
        self._string: bytearray | None = None
        self._escaped = False
        self._expects_key = False

    @property
    def at_key(self) -> bool:
        """True inside a key, or before one, of an object that has keys already."""
        return self._expects_key and bool(self._open[-1])

    def read(self, text: bytes) -> None:
        """Move on by the bytes of a token."""
        for byte in text:
            if self._string is None:
                self._read_outside(byte)
            elif self._ends(byte):
                self._end_string(self._string)
            else:
                self._string.append(byte)

    def repeats(self, text: bytes) -> bool:
        """True if these bytes would end a key that the object has."""
        raw, escaped = self._string, self._escaped
        for byte in text:
            if raw is None:
                raw = bytearray() if byte == _QUOTE else None
            elif byte == _QUOTE and not escaped:
                keys = self._open[-1]
                return keys is not None and _key(bytes(raw)) in keys
            else:
                raw = raw + bytes([byte])
                escaped = byte == _ESCAPE and not escaped
        return False

    def _read_outside(self, byte: int) -> None:
        match chr(byte):
            case '"':
                self._string = bytearray()
            case "{":
                self._open.append(set())
                self._expects_key = True
            case "[":
                self._open.append(None)
                self._expects_key = False
            case "}" | "]":
                self._open.pop()
                self._expects_key = False
            case ",":
                self._expects_key = self._open[-1] is not None
            case ":":
                self._expects_key = False

    def _ends(self, byte: int) -> bool:
        ends = byte == _QUOTE and not self._escaped
        self._escaped = byte == _ESCAPE and not self._escaped
        return ends

    def _end_string(self, raw: bytearray) -> None:
        keys = self._open[-1] if self._open else None
        if self._expects_key and keys is not None:
            keys.add(_key(bytes(raw)))
        self._string = None


def _key(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text
