"""Fuzz targets: well-formed files are read, and files with a few changed bytes raise no bare error.

`make fuzz` looks much further, guided by the coverage; it needs atheris.
"""

from __future__ import annotations

import random

import pytest

from fuzz.seeds import SEEDS
from fuzz.targets import TARGETS

MUTATIONS = 100
NESTED = b"\x09\0\0\0" + b"\1" + bytes(7)
"""An array of one array in a GGUF file; the first four bytes are the type of what comes next."""
FOUND = {
    "gguf": [
        b"GGUF",
        b"GGUF\x03\0\0\0" + b"\xff" * 16,
        b"GGUF\x03\0\0\0" + bytes(8) + b"\1" + bytes(7) + bytes(8) + NESTED * 5000,
    ],
    "safetensors": [
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"a":{"dtype":"F32","shape":["x"],"data_offsets":[0,1e999]}}',
    ],
    "tokenizer": [
        b'{"tokenizer.ggml.model":"llama","tokenizer.ggml.tokens":["a"],"tokenizer.ggml.scores":[0],'
        b'"tokenizer.ggml.unknown_token_id":0.5}',
        b'{"tokenizer.ggml.model":"llama","tokenizer.ggml.tokens":["a"],"tokenizer.ggml.scores":[0],'
        b'"tokenizer.ggml.unknown_token_id":7,"tokenizer.ggml.eos_token_id":-1}',
        b'{"tokenizer.ggml.model":"gpt2","tokenizer.ggml.tokens":["a"],"tokenizer.ggml.merges":["a"]}',
        b'{"tokenizer.ggml.model":[],"tokenizer.ggml.tokens":5}',
    ],
    "blocks": [b"[" * 100_000, (200_000).to_bytes(8, "little") + b"[" * 200_000],
}
"""Inputs that once raised an error that is none of the package's."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_well_formed_and_damaged_files(name: str) -> None:
    draw = random.Random(name)
    seeds = list(SEEDS[name]())
    for data in (*seeds, *FOUND.get(name, ())):
        TARGETS[name](data)
    for _ in range(MUTATIONS):
        TARGETS[name](mutated(draw.choice(seeds), draw))


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Change, cut out or repeat some bytes."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) or 1)
        size = draw.choice([1, 1, 2, 4, 8])
        match draw.randrange(4):
            case 0:
                changed[at : at + size] = draw.randbytes(size)
            case 1:
                changed[at : at + size] = draw.choice([b"\xff", b"\0"]) * size
            case 2:
                del changed[at : at + size]
            case _:
                changed[at:at] = changed[at : at + size]
    return bytes(changed)
