"""The installed package matches the repository: packages, links, data, names and version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import sgl_mlx

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MAPPED: dict[str, str] = SETUPTOOLS["package-dir"]


def packages_on_disk() -> Iterator[str]:
    """Every folder with an `__init__.py`, under the name it is imported by; links not followed."""
    for name, folder in {"sgl_mlx": "sgl_mlx", **MAPPED}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            if not any((ROOT / folder).joinpath(*inner[:i]).is_symlink() for i in range(1, 9)):
                yield ".".join((name, *inner))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel built from a copy of the source tree."""
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skip)
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", out, source]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_every_package_on_disk_is_in_the_list() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_a_relative_link_shows_the_mapped_folder_where_it_is_installed(name: str) -> None:
    link = ROOT / name.replace(".", "/")
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (ROOT / MAPPED[name]).resolve()


def test_the_wheel_holds_every_source_and_data_file(wheel: set[str]) -> None:
    inside = {package: package.replace(".", "/") for package in SETUPTOOLS["packages"]}
    expected = {
        f"{path}/{file.name}"
        for package, path in inside.items()
        for file in (ROOT / MAPPED.get(package, path)).iterdir()
        if file.is_file() and file.suffix != ".pyc"
    }
    assert expected - wheel == set()


def test_no_generic_top_level_name_is_installed(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sgl_mlx"}


def test_the_newest_heading_of_the_changelog_is_the_installed_version() -> None:
    headings = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == PROJECT["project"]["version"] == metadata.version("sgl-mlx")
    assert sgl_mlx.__version__ == headings[0]


def test_the_version_is_written_in_one_place() -> None:
    version = re.escape(PROJECT["project"]["version"])
    sources = [f for d in ("sgl_mlx", *MAPPED.values()) for f in (ROOT / d).rglob("*.py")]
    assert [f for f in sources if re.search(rf"['\"]{version}['\"]", f.read_text("utf-8"))] == []
