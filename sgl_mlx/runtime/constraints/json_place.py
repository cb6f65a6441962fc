"""A place in a JSON text: the keys of all open objects, and the unfinished string or number."""

from __future__ import annotations

import json

_QUOTE, _ESCAPE = ord('"'), ord("\\")
_DIGITS = frozenset(b"0123456789")
_NOTHING: frozenset[str] = frozenset()


class Place:
    """State of a JSON reader after the bytes read so far.

    Attributes:
        repeated: True if an object has the same key twice.
        digits: number of consecutive digits at the end of the text, outside strings.
        exponent: True inside the exponent of a number.
        object: number of the innermost open object, counted from 1; 0 in an array or outside.
    """

    def __init__(self) -> None:
        self._open: list[tuple[int, frozenset[str] | None]] = []  # None for an array
        self._string: bytes | None = None
        self._escaped = False
        self._expects_key = False
        self._objects = 0
        self.repeated = False
        self.digits = 0
        self.exponent = False

    def after(self, text: bytes) -> Place:
        """Return the place after further text; this place itself is not changed."""
        made = Place.__new__(Place)
        made.__dict__.update(self.__dict__)
        made._open = self._open.copy()
        made.read(text)
        return made

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the innermost object if a key is unfinished or may come next; else empty."""
        return (self._open[-1][1] or _NOTHING) if self._expects_key else _NOTHING

    @property
    def object(self) -> int:
        return self._open[-1][0] if self._open else 0

    @property
    def has_keys(self) -> bool:
        """True if any open object has a key already."""
        return any(keys for _, keys in self._open)

    @property
    def in_string(self) -> bool:
        return self._string is not None

    @property
    def begun(self) -> bytes:
        """Bytes of the unfinished string, with escapes as written; empty outside strings."""
        return self._string or b""

    @property
    def may_repeat(self) -> bool:
        """True if the unfinished or next key can still become one of `keys`."""
        if not self.keys:
            return False
        begun = _begun(self.begun)
        return any(key.startswith(begun) for key in self.keys)

    def read(self, text: bytes) -> None:
        """Update the place by further bytes of the text."""
        for byte in text:
            if self._string is None:
                self._read_outside(byte)
            elif byte == _QUOTE and not self._escaped:
                self._end_string(self._string)
            else:
                self._escaped = byte == _ESCAPE and not self._escaped
                self._string += bytes([byte])

    def _read_outside(self, byte: int) -> None:
        if byte in _DIGITS:
            self.digits += 1
            return
        in_number = self.exponent or self.digits > 0
        self.exponent = in_number and (byte in b"eE" or (self.exponent and byte in b"+-"))
        self.digits = 0
        match chr(byte):
            case '"':
                self._string = b""
            case "{":
                self._objects += 1
                self._open.append((self._objects, _NOTHING))
                self._expects_key = True
            case "[":
                self._open.append((0, None))
                self._expects_key = False
            case "}" | "]":
                self._open[-1:] = []
                self._expects_key = False
            case ",":
                self._expects_key = bool(self._open) and self._open[-1][1] is not None

    def _end_string(self, raw: bytes) -> None:
        self._string = None
        if self._expects_key:
            number, keys = self._open[-1]
            key = _begun(raw)
            self.repeated = self.repeated or key in (keys or ())
            self._open[-1] = number, (keys or _NOTHING) | {key}
            self._expects_key = False


def _begun(raw: bytes) -> str:
    """Decode the beginning of a JSON string; an unfinished escape or character is left out."""
    for cut in range(min(len(raw), 6) + 1):  # the longest escape has six bytes
        try:
            return str(json.loads(b'"' + raw[: len(raw) - cut] + b'"'))
        except ValueError:
            continue
    return raw.decode("utf-8", "replace")
