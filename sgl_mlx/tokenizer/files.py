"""Reading of the tokenizer files in a Hugging Face or MLX model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from sgl_mlx.bounds import shown
from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer.ends import ends_of_turn

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Special tokens that chat templates may use, as variables `bos_token`, `eos_token` and so on."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_folder(folder: Path) -> dict[str, Any]:
    """Read the arguments for `Tokenizer` from `tokenizer.json` and the files beside it.

    Truncation and padding are switched off. Tokens that only `added_tokens.json` or the
    `added_tokens_decoder` of `tokenizer_config.json` lists are added.

    Raises:
        TokenizerError: a file is missing or invalid; the message names the file and the reason.
    """
    backend = _read_backend(folder / "tokenizer.json")
    config = {**_read_json(folder / "special_tokens_map.json")}
    config.update(_read_json(folder / "tokenizer_config.json"))
    backend = _with_added(backend, folder, config)
    named = _named_tokens(config)
    bos = _token_id(backend, named.get("bos_token"))
    eos = _token_id(backend, named.get("eos_token"))
    template = _chat_template(folder, config)
    eos_ids = _eos_ids(folder) | ({eos} if eos is not None else set())
    return {
        "backend": backend,
        "bos_token_id": bos,
        "eos_token_ids": sorted(eos_ids | ends_of_turn(backend, eos_ids, template)),
        "prefix_ids": _prefix_ids(backend, bos, eos_ids, config.get("add_bos_token")),
        "chat_template": template,
        "special_tokens": named,
    }


def _with_added(
    backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]
) -> tokenizers.Tokenizer:
    """Return the tokenizer with the tokens that only the files beside `tokenizer.json` list.

    Raises:
        TokenizerError: the files give different texts for a token id, or a key is no id.
    """
    special = set(_named_tokens(config).values())
    plain = _read_json(folder / "added_tokens.json")
    entries: dict[int, Any] = {
        i: {"content": text, "special": text in special} for text, i in plain.items()
    }
    try:
        decoder = config.get("added_tokens_decoder") or {}
        entries |= {int(i): entry for i, entry in decoder.items()}
    except (AttributeError, ValueError) as e:
        raise TokenizerError(f"{folder}: added_tokens_decoder must map token ids: {e}") from e
    known = backend.get_added_tokens_decoder()
    missing = {i: entry for i, entry in sorted(entries.items()) if i not in known}
    for i, entry in missing.items():
        if backend.id_to_token(i) not in (None, entry["content"]):
            raise TokenizerError(
                f"{folder}: token {i} is {entry['content']!r} in the list of added tokens and "
                f"{backend.id_to_token(i)!r} in tokenizer.json"
            )
    if not missing:
        return backend
    backend = _with_ids(backend, {entry["content"]: i for i, entry in missing.items()})
    for entry in missing.values():
        flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
        backend.add_tokens(
            [tokenizers.AddedToken(entry["content"], **{"normalized": False, **flags})]
        )
    return backend


def _with_ids(backend: tokenizers.Tokenizer, ids: Mapping[str, int]) -> tokenizers.Tokenizer:
    """Return the tokenizer with each text in `ids` added to its vocabulary under the text's id.

    A later call of `add_tokens` for a text then keeps its id, and does not make a new one. A
    Unigram tokenizer is returned unchanged.
    """
    whole = json.loads(backend.to_str())
    vocabulary = whole["model"].get("vocab")
    if not isinstance(vocabulary, dict):  # Unigram's is a list; new tokens get the ids after it
        return backend
    vocabulary.update(ids)
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the texts of the special tokens in a configuration, as `bos_token` and so on."""
    found: dict[str, str] = {}
    for name in (f"{n}_token" for n in _NAMED):
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise TokenizerError(f"{path} is missing; a model folder needs its tokenizer.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(f"{path} is not a readable tokenizer: {e}") from e
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if the file does not exist.

    Raises:
        TokenizerError: the file is not JSON or holds something else than an object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise TokenizerError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _token_id(backend: tokenizers.Tokenizer, text: str | None) -> int | None:
    return None if text is None else backend.token_to_id(text)


def _eos_ids(folder: Path) -> set[int]:
    """Return the end tokens that the model's configurations list; negative ids mean none.

    Raises:
        TokenizerError: an id is no integer.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if wrong := [token for token in ids if type(token) is not int]:
            raise TokenizerError(
                f"{folder / name}: eos_token_id must be token ids, got {shown(wrong[0])}"
            )
        found.update(token for token in ids if token >= 0)
    return found


def _prefix_ids(
    backend: tokenizers.Tokenizer, bos: int | None, eos_ids: set[int], add_bos: bool | None
) -> list[int]:
    """Return the tokens to put before a text: those of the post-processor, without end tokens.

    Args:
        add_bos: False removes the BOS token, True adds it if it is missing, None changes nothing.
    """
    ids: list[int] = backend.encode("", add_special_tokens=True).ids
    while ids and ids[-1] in eos_ids and ids[-1] != bos:
        ids.pop()
    if add_bos is False:
        return [i for i in ids if i != bos]
    if add_bos and bos is not None and bos not in ids:
        return [bos, *ids]
    return ids


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Read the default chat template from its own file or the configuration; None if there is none.

    Raises:
        TokenizerError: the template is not text, or a file is not valid UTF-8 or JSON.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as e:
            raise TokenizerError(f"{file} is not UTF-8: {e.reason} at byte {e.start}") from e
    template = _read_json(folder / "chat_template.json").get("chat_template")
    template = template or config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry.get("name"): entry.get("template") for entry in template}
    if isinstance(template, dict):
        template = template.get("default") or (
            next(iter(template.values())) if len(template) == 1 else None
        )
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{folder}: chat_template is no text but {type(template).__name__}")
    return template
