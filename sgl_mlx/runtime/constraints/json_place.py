"""A place in a JSON text: the keys of every open object, and the string or number under way."""

from __future__ import annotations

import json

_QUOTE, _ESCAPE = ord('"'), ord("\\")
_DIGITS = frozenset(b"0123456789")
_NOTHING: frozenset[str] = frozenset()


class Place:
    """The state of a reader of JSON, byte by byte.

    Attributes:
        repeated: a key was ended that its object has already.
        digits: how many digits end the text, outside strings.
        exponent: those digits are of an exponent.
        object: numbers the object that the next key belongs to.
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
        """Return the place after further text; this one stays as it is."""
        made = Place.__new__(Place)
        made.__dict__.update(self.__dict__)
        made._open = self._open.copy()
        made.read(text)
        return made

    @property
    def keys(self) -> frozenset[str]:
        """The keys that the object has in which a key is under way or comes next."""
        return (self._open[-1][1] or _NOTHING) if self._expects_key else _NOTHING

    @property
    def object(self) -> int:
        return self._open[-1][0] if self._open else 0

    @property
    def has_keys(self) -> bool:
        """True if an open object has a key, which could be written once more."""
        return any(keys for _, keys in self._open)

    @property
    def in_string(self) -> bool:
        return self._string is not None

    @property
    def begun(self) -> bytes:
        """The bytes of the string under way, as they are written."""
        return self._string or b""

    @property
    def may_repeat(self) -> bool:
        """True if the key under way, or the next one, can still become one of `keys`."""
        if not self.keys:
            return False
        begun = _begun(self.begun)
        return any(key.startswith(begun) for key in self.keys)

    def read(self, text: bytes) -> None:
        """Move on by the bytes of a token."""
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
    """Decode the beginning of a string; an escape or a character that is cut is left out."""
    for cut in range(min(len(raw), 6) + 1):  # the longest escape has six bytes
        try:
            return str(json.loads(b'"' + raw[: len(raw) - cut] + b'"'))
        except ValueError:
            continue
    return raw.decode("utf-8", "replace")
