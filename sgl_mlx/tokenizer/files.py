"""The tokenizer files of a Hugging Face or MLX model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from sgl_mlx.errors import TokenizerError


def read_folder(folder: Path) -> dict[str, Any]:
    """Arguments for `Tokenizer` from `tokenizer.json` and the files beside it.

    Raises:
        TokenizerError: naming the file that is missing or cannot be read, and what is wrong.
    """
    backend = _read_backend(folder / "tokenizer.json")
    config = {**_read_json(folder / "special_tokens_map.json")}
    config.update(_read_json(folder / "tokenizer_config.json"))
    bos = _token_id(backend, config.get("bos_token"))
    eos = _token_id(backend, config.get("eos_token"))
    eos_ids = _eos_ids(folder) | ({eos} if eos is not None else set())
    return {
        "backend": backend,
        "bos_token_id": bos,
        "eos_token_ids": sorted(eos_ids),
        "prefix_ids": _prefix_ids(backend, bos, eos_ids, config.get("add_bos_token")),
        "chat_template": _chat_template(folder, config),
    }


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise TokenizerError(f"{path} is missing; a model folder needs its tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(f"{path} is not a readable tokenizer: {e}") from e


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise TokenizerError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _token_id(backend: tokenizers.Tokenizer, token: Any) -> int | None:
    """The id of a token given as text or as `{"content": text}`."""
    text = token.get("content") if isinstance(token, dict) else token
    return None if text is None else backend.token_to_id(text)


def _eos_ids(folder: Path) -> set[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return found


def _prefix_ids(
    backend: tokenizers.Tokenizer, bos: int | None, eos_ids: set[int], add_bos: bool | None
) -> list[int]:
    """What the tokenizer puts before a text: its post-processor's, unless the config says."""
    ids: list[int] = backend.encode("", add_special_tokens=True).ids
    while ids and ids[-1] in eos_ids and ids[-1] != bos:
        ids.pop()
    if add_bos is False:
        return [i for i in ids if i != bos]
    if add_bos and bos is not None and bos not in ids:
        return [bos, *ids]
    return ids


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(folder / "chat_template.json").get("chat_template")
    template = template or config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template
