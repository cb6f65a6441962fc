"""Reader of the beginning of a GGUF file: magic, metadata and tensor descriptions."""

from __future__ import annotations

import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 8
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_WEIGHTS = "a safetensors file; give the folder that holds it and config.json"
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer to the file; fetch it with `git lfs pull`",
    b"<": "a web page; the download went wrong",
    b"PK": "a ZIP archive, such as PyTorch writes",
    b"ggjt": "a GGML file from before GGUF; convert the model anew",
    b"tjgg": "a GGML file from before GGUF; convert the model anew",
    b"lmgg": "a GGML file from before GGUF; convert the model anew",
    b"fmgg": "a GGML file from before GGUF; convert the model anew",
}
"""Kinds of other files that are named .gguf by mistake, by their first bytes."""


class Cursor:
    """Reader of little-endian values from the beginning of a file onwards.

    Each read advances `position`. Reading beyond the end raises `CorruptModelError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        with path.open("rb") as file:
            empty = path.stat().st_size == 0  # which cannot be mapped
            self._data = b"" if empty else mmap(file.fileno(), 0, access=ACCESS_READ)

    def check_magic(self) -> None:
        """Read magic and version.

        Raises:
            CorruptModelError: for a file that is no GGUF; the message says what it looks like.
            UnsupportedModelError: for a big-endian file or another version than 2 and 3.
        """
        head = bytes(self._data[:64])
        if not head.startswith(b"GGUF"):
            other = next((what for start, what in _OTHERS.items() if head.startswith(start)), None)
            is_weights = b'{"' in head[8:16]
            what = _WEIGHTS if is_weights else other or "something else"
            raise CorruptModelError(
                f"{self.path} is not a GGUF file: it is {what if self._data else 'empty'}"
            )
        self.position = 4
        version = self.scalar("I")
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(
                f"{self.path} is a big-endian GGUF; this reads little-endian ones, which "
                "`gguf-convert-endian FILE little` of the gguf package makes"
            )
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"{self.path} is GGUF version {version}; this reads versions 2 and 3"
            )

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        self._expect(count * struct.calcsize(code))
        values = struct.unpack_from(f"<{count}{code}", self._data, self.position)
        self.position += count * struct.calcsize(code)
        return values

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """Read `count` strings, in a fast loop: a vocabulary may have hundreds of thousands."""
        data, position = self._data, self.position
        found: list[str] = []
        try:
            for _ in range(count):
                start = position + _LENGTH.size
                position = start + _LENGTH.unpack_from(data, position)[0]
                found.append(data[start:position].decode())
                if position > len(data):
                    break
        except UnicodeDecodeError as e:
            raise CorruptModelError(
                f"{self.path}: the string that ends at byte {position:,} is not UTF-8"
            ) from e
        except struct.error:
            position = len(data) + 1
        self._expect(position - self.position)
        self.position = position
        return found

    def entry(self) -> tuple[str, Any]:
        return self.string(), self._value(self.scalar("I"))

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dimensions = self.string(), self.scalar("I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise CorruptModelError(f"{self.path}: tensor {name} has {n_dimensions} dimensions")
        shape = self.scalars("Q", n_dimensions)[::-1]
        if not all(shape):
            raise CorruptModelError(f"{self.path}: tensor {name} is empty, of shape {shape}")
        return name, shape, self.scalar("I"), self.scalar("Q")

    def _value(self, code: int) -> Any:
        if code == GGUFValueType.STRING:
            return self.string()
        if code == GGUFValueType.ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            if item in _SCALARS:
                return list(self.scalars(_SCALARS[GGUFValueType(item)], count))
            if item == GGUFValueType.STRING:
                return self.strings(count)
            try:
                return [self._value(item) for _ in range(count)]
            except RecursionError:
                raise CorruptModelError(f"{self.path}: arrays are nested too deeply") from None
        if code not in _SCALARS:
            raise CorruptModelError(
                f"{self.path}: unknown value type {code} before byte {self.position:,}"
            )
        return self.scalar(_SCALARS[GGUFValueType(code)])

    def _expect(self, count: int) -> None:
        if count > len(self._data) - self.position:
            raise CorruptModelError(
                f"{self.path} is truncated: {count:,} bytes are due at byte "
                f"{self.position:,} of {len(self._data):,}"
            )
