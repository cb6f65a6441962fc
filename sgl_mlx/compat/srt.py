"""Helpers that programs import from `sglang.srt`."""

from __future__ import annotations

import base64
import urllib.request
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from sgl_mlx.compat.schema_regex import build_regex_from_object
from sgl_mlx.compat.tokenizer import TransformersTokenizer
from sgl_mlx.errors import ImageError
from sgl_mlx.lang.reasoning import split_reasoning
from sgl_mlx.tokenizer import Tokenizer

__all__ = [
    "ReasoningParser",
    "ServerArgs",
    "build_regex_from_object",
    "get_tokenizer",
    "kill_process_tree",
    "load_image",
]

_SECONDS = 10


class ServerArgs(SimpleNamespace):
    """The options of a server, as attributes; an option that was not given is None."""

    def __init__(self, model_path: str | None = None, **options: Any) -> None:
        super().__init__(model_path=model_path, **options)

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)

    @staticmethod
    def add_cli_args(parser: Any) -> None:
        """Add `--model-path` and `--tp-size` to an `argparse` parser.

        SGLang adds many more options; call `parse_known_args` so that they are not refused.
        """
        parser.add_argument("--model-path", "--model", default=None)
        parser.add_argument("--tp-size", "--tp", type=int, default=1)

    @classmethod
    def from_cli_args(cls, args: Any) -> ServerArgs:
        return cls(**vars(args))


class ReasoningParser:
    """A parser that separates the reasoning of a model from its answer.

    Args:
        model_type: "kimi" for Kimi's marks; otherwise the marks are `<think>` and `</think>`.
        stream_reasoning: no effect.
    """

    def __init__(self, model_type: str | None = None, stream_reasoning: bool = True) -> None:
        self._model_type = model_type
        self._text = ""
        self._shown = ("", "")

    def parse_non_stream(self, full_text: str) -> tuple[str, str]:
        """Split a whole text into (reasoning, answer)."""
        return split_reasoning(full_text, self._model_type)

    def parse_stream_chunk(self, chunk_text: str) -> tuple[str, str]:
        """Add a piece of a stream; return what the piece adds to (reasoning, answer)."""
        self._text += chunk_text
        parts = split_reasoning(self._text, self._model_type)
        new = [now.removeprefix(shown) for now, shown in zip(parts, self._shown, strict=True)]
        self._shown = parts
        return new[0], new[1]


def get_tokenizer(tokenizer_name: str, *_: Any, **__: Any) -> TransformersTokenizer:
    """Return the tokenizer of a model, named by Hugging Face id, folder, GGUF file or alias.

    Raises:
        ModelNotFoundError: there is no such model.
        TokenizerError: the model has no usable tokenizer.
    """
    # Imported here so that the other helpers load without mlx
    from sgl_mlx.models.gguf.file import GGUFFile
    from sgl_mlx.models.resolve import resolve

    path = resolve(tokenizer_name)[1]
    folder = path.is_dir()
    own = Tokenizer.from_file(path) if folder else Tokenizer.from_gguf(GGUFFile(path).metadata)
    return TransformersTokenizer(own)


def load_image(image_file: Any) -> tuple[Any, Any]:
    """Return (picture, size) from a PIL image, bytes, a path, a URL, a `data:` URL or base64.

    The picture is a PIL image; the size is (width, height).

    Raises:
        ImageError: the picture cannot be read.
    """
    try:
        picture = image_file if isinstance(image_file, Image.Image) else _opened(image_file)
        picture.load()
    except (OSError, ValueError) as error:
        raise ImageError(f"image {str(image_file)[:80]!r} cannot be read: {error}") from error
    return picture, picture.size


def _opened(source: Any) -> Image.Image:
    if isinstance(source, bytes):
        return Image.open(BytesIO(source))
    if source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=_SECONDS) as response:
            return Image.open(BytesIO(response.read()))
    if source.startswith("data:"):
        return Image.open(BytesIO(base64.b64decode(source.partition(",")[2])))
    if Path(source).is_file():
        return Image.open(source)
    return Image.open(BytesIO(base64.b64decode(source, validate=True)))


def kill_process_tree(parent_pid: int | None = None, *_: Any, **__: Any) -> None:
    """Do nothing: engines run in this process, and `shutdown()` ends them."""
