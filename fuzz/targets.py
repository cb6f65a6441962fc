"""Fuzz targets: functions that read bytes of any content; only errors of this package may leave.

A target returns when the bytes were read or refused. Every other exception, a hang and a crash of
the process are faults.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError
from safetensors.numpy import load

from sgl_mlx.errors import SglError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.gguf.config import read_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.safetensors_file import read_entries
from sgl_mlx.models.states import StateShape
from sgl_mlx.models.vision.image import open_frames
from sgl_mlx.runtime.disk import block_file
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.states import StatePool
from sgl_mlx.tokenizer import Tokenizer, chat

KEY = "ab" * 20
FRAMES = 4
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {"role": "assistant", "content": "Hi", "tool_calls": [{"function": {"name": "f"}}]},
]

Target = Callable[[bytes], object]

_MEMORY = "/dev/shm"  # on Linux, a file system in memory
_folder = Path(
    tempfile.mkdtemp(prefix="sgl-mlx-fuzz-", dir=_MEMORY if Path(_MEMORY).is_dir() else None)
)


def gguf(data: bytes) -> None:
    """Read a GGUF file: metadata, the model's configuration, and every tensor."""
    path = _written("model.gguf", data)
    with suppress(SglError):
        file = GGUFFile(path)
        for name in islice(file.tensors, 8):
            with suppress(SglError):
                file.floats(name)
        read_config(file)


def safetensors(data: bytes) -> None:
    """Read the header of a safetensors file; the bytes are the file, then the header alone."""
    for whole in (data, len(data).to_bytes(8, "little") + data + bytes(64)):
        _written("model.safetensors", whole)
        with suppress(SglError):
            read_entries(_folder)


def tokenizer(data: bytes) -> None:
    """Build a tokenizer from a GGUF file's metadata, given as JSON, and use it."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(metadata, dict):
        with suppress(SglError):
            made = Tokenizer.from_gguf(metadata)
            made.decode(made.extend(made.encode("Hello, wörld 12"), " again"))


def blocks(data: bytes) -> None:
    """Read a block of the disk cache."""
    block_file.decode(KEY, data)


def states(data: bytes) -> None:
    """Read a snapshot of recurrent state whose checksum is right, whatever else it holds."""
    from sgl_mlx.runtime.cache.tier import LoadState
    from sgl_mlx.runtime.disk.copy import PoolCopy, layout
    from sgl_mlx.runtime.disk.store import DiskStore

    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return
    (_folder / f"{KEY}.safetensors").write_bytes(block_file.encode(KEY, arrays))
    pool = KVPool([LayerShape(heads=1, key_dim=2, value_dim=2)], 4, mx.float32)
    recurrent = StatePool([StateShape(0, (3,), mx.float32)], 2)
    fits = layout(pool, recurrent)
    store = DiskStore(BlockFolder(_folder, 1 << 20), lambda: None, fits=fits)
    try:
        reading = store.read([KEY])
        store.close()
        if reading.count:
            PoolCopy(pool, store, recurrent).make([LoadState(1, (), reading.id)])
    finally:
        store.close()


def image(data: bytes) -> None:
    """Decode the first frames of a picture."""
    with suppress(SglError), closing(open_frames(data)) as frames:
        for _ in islice(frames, FRAMES):
            pass


def template(data: bytes) -> None:
    """Render a chat template."""
    text = data.decode("utf-8", "replace")
    with suppress(SglError):
        chat.render(text, MESSAGES, {"bos_token": "<s>", "tools": None})


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (gguf, safetensors, tokenizer, blocks, states, image, template)
}


def _written(name: str, data: bytes) -> Path:
    path = _folder / name
    path.write_bytes(data)
    return path
