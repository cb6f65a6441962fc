"""Videos for tests: as frames with times, and as files that lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sgl_mlx.models.vision.video import Clip
from sgl_mlx.tokenizer import Tokenizer
from tests.models.vision.conftest import read_golden, write_golden
from tests.models.vision.qwen.films import CHARACTERS, FIRST, SETTINGS


def clip(frames: Sequence[Image.Image], seconds: float = 1.0) -> Clip:
    """Make a video of frames that are shown for so many seconds each."""
    begins = tuple(seconds * i for i in range(len(frames)))
    return Clip(tuple(frames), begins, seconds * len(frames))


def write_film(path: Path, frames: Sequence[Image.Image], milliseconds: int) -> Path:
    """Write an animated PNG."""
    first, *others = frames
    first.save(path, "PNG", save_all=True, append_images=others, duration=milliseconds)
    return path


def write_watching(folder: Path, name: str, **changes: Any) -> Path:
    """Write a Qwen golden's model with settings for videos, and tokens that spell times."""
    toy = read_golden(name)
    settings = {
        "preprocessor_config.json": toy.processor,
        "video_preprocessor_config.json": SETTINGS,
    }
    write_golden(folder, toy, files=settings, **changes)
    size = toy.config["text_config"]["vocab_size"]
    tokens = ["<unk>", "<s>", "</s>", *(f"t{n}" for n in range(3, size))]
    tokens[FIRST : FIRST + len(CHARACTERS)] = CHARACTERS.replace(" ", "\u2581")
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (size - 3)],
        "tokenizer.ggml.scores": [-float(n) for n in range(size)],
        "tokenizer.ggml.add_space_prefix": False,
    }
    Tokenizer.from_gguf(metadata).backend.save(str(folder / "tokenizer.json"))
    return folder
