"""Inputs from which fuzzing starts: one or more well-formed files of each kind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from PIL import Image
from safetensors.numpy import save

from fuzz.targets import KEY
from sgl_mlx.runtime.disk import block_file

_TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁a", "<0x41>", "<|im_end|>"]


def gguf() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_head_count(2)
        writer.add_feed_forward_length(32)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_token_list(_TOKENS)
        writer.add_array("nested", [1, 2, 3])
        writer.add_tensor("token_embd.weight", np.ones((9, 32), np.float32))
        writer.add_tensor("output_norm.weight", np.ones(32, np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield path.read_bytes()


def safetensors() -> Iterator[bytes]:
    whole = save({"a": np.ones((2, 3), np.float32), "b": np.ones(1, np.int8)}, {"format": "pt"})
    yield whole
    yield whole[8 : 8 + int.from_bytes(whole[:8], "little")]


def tokenizer() -> Iterator[bytes]:
    for kind in ("llama", "gpt2"):
        yield json.dumps(
            {
                "general.architecture": "llama",
                "tokenizer.ggml.model": kind,
                "tokenizer.ggml.pre": "llama-bpe",
                "tokenizer.ggml.tokens": _TOKENS,
                "tokenizer.ggml.scores": [0.0] * len(_TOKENS),
                "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 6, 4],
                "tokenizer.ggml.merges": ["a b"],
                "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.ggml.unknown_token_id": 0,
                "tokenizer.ggml.add_bos_token": True,
                "tokenizer.chat_template": "{{ messages }}",
            },
            ensure_ascii=False,
        ).encode()


def blocks() -> Iterator[bytes]:
    arrays = {f"{kind}.0": np.ones((4, 1, 2), np.float32) for kind in ("keys", "values")}
    yield block_file.encode(KEY, arrays)


def states() -> Iterator[bytes]:
    state = {"states.0": np.ones((1, 3), np.float32)}
    tail = {f"{kind}.0": np.ones((4, 1, 2), np.float32) for kind in ("keys", "values")}
    yield save(state)
    yield save({**state, **tail})


def image() -> Iterator[bytes]:
    drawn = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        for image in (drawn, drawn.convert("L")):
            stream = BytesIO()
            frames: Any = {"save_all": True, "append_images": [image]} if kind == "GIF" else {}
            image.save(stream, kind, **frames)
            yield stream.getvalue()


def template() -> Iterator[bytes]:
    yield (
        b"{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ bos_token }}"
        b"{% endif %}<|{{ m['role'] }}|>{{ m.content | trim }}{% endfor %}"
    )
    yield b"{% macro f(x) %}{{ x ~ 'a' * 3 }}{% endmacro %}{{ f(range(9) | list | join(',')) }}"
    yield b"{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ '%s %5d' % ('a', n.x) }}"
    yield b"{{ '{:>9}'.format(tools | tojson(indent=2)) | replace('a', 'b') | center(20) }}"


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    made.__name__: made for made in (gguf, safetensors, tokenizer, blocks, states, image, template)
}
