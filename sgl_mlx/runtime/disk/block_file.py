"""The file format of one block of KV: safetensors with the block's key and a checksum.

The checksum in the metadata covers names, types, shapes and bytes of the tensors. A file with
another key or a wrong checksum is rejected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORMAT = "sgl-mlx-kv/1"

Arrays = Mapping[str, np.ndarray[Any, Any]]
"""Arrays of a block by name, such as `keys.0`; the first axis counts tokens."""

STATE = "states."
"""Names of arrays of recurrent state begin with this; only snapshots have such arrays."""
WINDOW = "windows."
"""Names of arrays of layers with window slots begin with this; a "window" file has only such
arrays.
"""

Kind = Literal["block", "snapshot", "window"]
"""Kinds of files: a block of KV, a snapshot of recurrent state, a block of layers with a window."""


def kind_of(arrays: Arrays) -> Kind:
    """Return the kind of a file with these arrays."""
    if any(name.startswith(STATE) for name in arrays):
        return "snapshot"
    return "window" if any(name.startswith(WINDOW) for name in arrays) else "block"


def encode(key: str, arrays: Arrays) -> bytes:
    """Serialise the block `key` as a safetensors document; the arrays must be contiguous."""
    metadata = {"format": FORMAT, "key": key, "checksum": _checksum(arrays)}
    return bytes(save(dict(arrays), metadata))


def decode(key: str, data: bytes) -> Arrays | None:
    """Read the arrays of the block `key`; None if the data is damaged or of another block."""
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    expected = {"format": FORMAT, "key": key, "checksum": _checksum(arrays)}
    return arrays if metadata == expected else None


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
