"""setuptools' build backend, made reproducible: the same sources give the same sdist and wheel.

A wheel takes its times from SOURCE_DATE_EPOCH. setuptools writes an sdist with the times, owners
and permissions of the machine, and without the links in `sgl_mlx/`; so it is written anew.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the other hooks of PEP 517 and 660)

Settings = Mapping[str, Any] | None

# the earliest time that a zip file can hold
os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Build the sdist, as PEP 517 asks, and return its file name."""
    name = build_meta.build_sdist(sdist_directory, config_settings)
    _rewrite(Path(sdist_directory) / name, int(os.environ["SOURCE_DATE_EPOCH"]))
    return name


def _rewrite(file: Path, time: int) -> None:
    rewritten = file.with_suffix(".part")
    with (
        tarfile.open(file) as old,
        rewritten.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        members = [*old, *_links(file.name.removesuffix(".tar.gz"))]
        for member in sorted(members, key=lambda member: member.name):
            content = old.extractfile(member) if member.isfile() else None
            new.addfile(_plain(member, time), content)
    rewritten.replace(file)


def _links(top: str) -> Iterator[tarfile.TarInfo]:
    for path in Path("sgl_mlx").iterdir():
        if path.is_symlink():
            link = tarfile.TarInfo(f"{top}/{path.as_posix()}")
            link.type, link.linkname = tarfile.SYMTYPE, path.readlink().as_posix()
            yield link


def _plain(member: tarfile.TarInfo, time: int) -> tarfile.TarInfo:
    executable = member.isdir() or bool(member.mode & 0o100)
    plain = tarfile.TarInfo(member.name)
    plain.type, plain.linkname, plain.size = member.type, member.linkname, member.size
    plain.mode, plain.mtime = 0o755 if executable else 0o644, time
    return plain
