"""How an embedding model makes one vector of the hidden states of a text.

The description is read from the files of sentence-transformers in a folder (`modules.json`,
`1_Pooling/config.json`), or from llama.cpp's metadata in a GGUF file (`pooling_type`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.tokenizer import Tokenizer

Mode = Literal["last", "mean"]

_MODES: dict[str, Mode] = {"lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}
"""Supported values of sentence-transformers, as flags `pooling_mode_…` or as `pooling_mode`."""
_GGUF_MODES: dict[int, Mode] = {1: "mean", 3: "last"}
_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}
_BIDIRECTIONAL = {"use_bidirectional_attention": True, "is_causal": False}
"""Settings of a configuration by which tokens attend to later tokens too."""


@dataclass(frozen=True)
class Pooling:
    """The steps from hidden states to an embedding.

    Attributes:
        mode: "last" takes the state of the last token, "mean" the mean of all.
        normalize: True scales the vector to length 1.
        suffix: tokens that end every text.
        fault: why the model's embeddings cannot be computed here; empty if they can.
    """

    mode: Mode = "last"
    normalize: bool = False
    suffix: tuple[int, ...] = ()
    fault: str = ""


def folder_pooling(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> Pooling | None:
    """Read the pooling of a model folder; None if the folder does not describe an embedding model.

    Raises:
        CorruptModelError: a file of sentence-transformers is not as expected.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return None
    try:
        modules = {m["type"].rpartition(".")[2]: folder / m["path"] for m in _read(file)}
        if "Pooling" not in modules:
            return None
        given = dict(_read(modules["Pooling"] / "config.json").items())
        suffix = _suffix(folder, tokenizer)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptModelError(
            f"{folder}: the files of sentence-transformers are broken: {error!r}"
        ) from error
    names = {n.removeprefix("pooling_mode_") for n, on in given.items() if on is True}
    names = names - {"include_prompt"} | {str(given[n]) for n in given if n == "pooling_mode"}
    unknown = modules.keys() - _KNOWN_MODULES
    fault = _bidirectional(config)
    if unknown:
        fault = f"it has modules that are not supported: {', '.join(sorted(unknown))}"
    elif len(names) != 1 or not names <= _MODES.keys():
        fault = f"its pooling is not supported: {', '.join(sorted(names)) or 'none'}"
    mode = "last" if fault else _MODES[names.pop()]
    return Pooling(mode, "Normalize" in modules, suffix, fault)


def gguf_pooling(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> Pooling | None:
    """Read the pooling of a GGUF file's metadata; None if the model only generates text.

    As llama.cpp does, the vectors are scaled to length 1.
    """
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type") or 0
    if not kind:
        return None
    causal = metadata.get(f"{metadata['general.architecture']}.attention.causal", True)
    fault = _bidirectional({"is_causal": causal})
    if kind not in _GGUF_MODES:
        fault = f"its pooling is not supported: type {kind} of llama.cpp"
    end = metadata.get("tokenizer.ggml.eos_token_id")
    adds_end = metadata.get("tokenizer.ggml.add_eos_token") and end is not None
    suffix = (int(cast(int, end)),) if adds_end else ()
    return Pooling(_GGUF_MODES.get(kind, "last"), True, suffix, fault)


def _bidirectional(config: Mapping[str, Any]) -> str:
    found = any(config.get(name) is value for name, value in _BIDIRECTIONAL.items())
    return "its tokens attend to later tokens too" if found else ""


def _suffix(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the end tokens that the tokenizer's post-processor or configuration adds to a text."""
    ids: list[int] = tokenizer.backend.encode("", add_special_tokens=True).ids
    count = 0
    while count < len(ids) and ids[-1 - count] in tokenizer.eos_token_ids - {
        tokenizer.bos_token_id
    }:
        count += 1
    file = folder / "tokenizer_config.json"
    config = _read(file) if file.is_file() else {}
    end = config.get("eos_token")
    end = end["content"] if isinstance(end, dict) else end
    id_of_end = tokenizer.backend.token_to_id(end) if end is not None else None
    if not count and config.get("add_eos_token") and id_of_end is not None:
        return (id_of_end,)
    return tuple(ids[len(ids) - count :])


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))
