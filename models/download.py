"""Downloading a model from the Hugging Face hub: what is missing, and fetching it.

Files are fetched one after the other on the calling thread, so that Ctrl-C ends the download at
once; the hub's own `snapshot_download` waits until its threads have finished their files. After a
dropped connection a file is resumed where it broke off. After an interruption the complete files
are kept. On a terminal the hub's library shows a progress bar for each file.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm as hub_tqdm

from sgl_mlx.errors import ModelNotFoundError
from sgl_mlx.models.safetensors_file import read_config

PATTERNS = ["*.json", "model*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
"""Name patterns of the files that a model is loaded from."""

_GIGA = 1e9


@dataclass(frozen=True)
class Download:
    """Files of a repository that are still to be fetched.

    Attributes:
        repo: id of the repository on the hub.
        revision: the commit of the files.
        files: names of the missing files, smallest first.
        size: bytes of the missing files in total.
        weights: bytes of all weight files of the model, including those already in the cache.
        folder: the hub's cache, where the files are stored.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    size: int
    weights: int
    folder: Path

    def __str__(self) -> str:
        count = f"{len(self.files)} file{'s' * (len(self.files) != 1)}"
        return f"{self.repo}: {count}, {size_text(self.size)}, into {shown(self.folder)}"


def plan_download(repo: str) -> Download:
    """Ask the hub which files of a model are missing from the cache.

    Raises:
        Exception: whatever the hub's library and its HTTP client raise.
    """
    info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = {name: sizes[name] for name in filter_repo_objects(sizes, allow_patterns=PATTERNS)}
    revision = info.sha or constants.DEFAULT_REVISION
    missing = {name: size for name, size in wanted.items() if not _is_here(repo, name, revision)}
    return Download(
        repo,
        revision,
        tuple(sorted(missing, key=lambda name: missing[name])),
        sum(missing.values()),
        sum(size for name, size in wanted.items() if name.endswith(".safetensors")),
        Path(constants.HF_HUB_CACHE),
    )


def fetch(download: Download) -> None:
    """Fetch the missing files.

    Raises:
        ModelNotFoundError: when the files do not fit on the disk.
        Exception: whatever the hub's library and its HTTP client raise.
    """
    download.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(download.folder).free
    if free < download.size:
        raise ModelNotFoundError(
            f"{download}, but only {size_text(free)} are free there; free some, "
            "or set HF_HOME to a folder on another disk"
        )
    for name in download.files:
        huggingface_hub.hf_hub_download(download.repo, name, revision=download.revision)


def fetch_config(repo: str, revision: str) -> dict[str, Any]:
    """Fetch only a model's `config.json`, and return its content.

    Raises:
        CorruptModelError: when the file is no JSON object or has no `model_type`.
        Exception: whatever the hub's library and its HTTP client raise.
    """
    file = huggingface_hub.hf_hub_download(repo, "config.json", revision=revision)
    return read_config(Path(file).parent)


class _NoBar(hub_tqdm):
    """Progress bar that is not drawn, since each file has shown a bar of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]


def snapshot(repo: str, offline: bool) -> Path:
    """Return a model's folder in the cache, after fetching whatever is missing from it.

    Args:
        offline: True looks in the cache only.

    Raises:
        Exception: whatever the hub's library and its HTTP client raise.
    """
    found = huggingface_hub.snapshot_download(
        repo, allow_patterns=PATTERNS, local_files_only=offline, tqdm_class=_NoBar
    )
    return Path(found)


def is_hub_error(error: Exception) -> bool:
    """Return True for an error of the hub, the network or the disk."""
    kinds = (HfHubHTTPError, HFValidationError, OSError)
    # the module of the hub's HTTP client differs by version: httpx, httpx2
    return isinstance(error, kinds) or type(error).__module__.startswith("httpx")


def size_text(size: int) -> str:
    """Format a number of bytes in MB or GB, such as "270 MB" or "4.5 GB"."""
    return f"{size / 1e6:,.0f} MB" if size < _GIGA else f"{size / _GIGA:,.1f} GB"


def shown(path: Path) -> str:
    """Format a path; one below the home folder begins with `~/`."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def _is_here(repo: str, name: str, revision: str) -> bool:
    found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
    return isinstance(found, str)
