"""The installed package matches the repository: packages, links, data, names and version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
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
GENERATED = {"PKG-INFO", "setup.cfg", "sgl_mlx.egg-info"}
IGNORED = ("build", "dist", "__pycache__", ".hypothesis", ".coverage", *GENERATED)


def packages_on_disk() -> Iterator[str]:
    """Every folder with an `__init__.py`, under the name it is imported by; links not followed."""
    for name, folder in {"sgl_mlx": "sgl_mlx", **MAPPED}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            if not any((ROOT / folder).joinpath(*inner[:i]).is_symlink() for i in range(1, 9)):
                yield ".".join((name, *inner))


def copied_tree(folder: Path, hour: int) -> Path:
    """Copy the sources alone; every file was changed at the given hour of 2001."""
    skip = shutil.ignore_patterns(".git", ".venv", ".*_cache", *IGNORED)
    shutil.copytree(ROOT, folder, symlinks=True, ignore=skip)
    for file in folder.rglob("*"):
        os.utime(file, (1_000_000_000 + 3600 * hour,) * 2, follow_symlinks=False)
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an "sdist" or a "wheel" by the project's own backend."""
    program = f"import sys, build_backend; build_backend.build_{kind}(sys.argv[1])"
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    subprocess.run(
        [sys.executable, "-c", program, out],
        cwd=source,
        env={**environment, "PYTHONPATH": ".ci"},
        check=True,
        capture_output=True,
    )
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two copies of the sources, in different places and of different ages."""
    return [copied_tree(tmp_path_factory.mktemp("trees") / "tree", hour) for hour in (1, 2)]


@pytest.fixture(scope="module")
def sdists(trees: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [build("sdist", tree, tmp_path_factory.mktemp("sdist")) for tree in trees]


@pytest.fixture(scope="module")
def wheels(trees: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [build("wheel", tree, tmp_path_factory.mktemp("wheel")) for tree in trees]


@pytest.fixture(scope="module")
def wheel(wheels: list[Path]) -> set[str]:
    """The names of the files in a wheel."""
    return set(zipfile.ZipFile(wheels[0]).namelist())


@pytest.mark.parametrize("kind", ["sdists", "wheels"])
def test_building_twice_gives_the_same_bytes(kind: str, request: pytest.FixtureRequest) -> None:
    one, other = request.getfixturevalue(kind)
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_the_sdist_holds_every_file_and_link_of_the_repository(
    sdists: list[Path], tmp_path: Path
) -> None:
    with tarfile.open(sdists[0]) as sdist:
        sdist.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert contents(unpacked) == contents(copied_tree(tmp_path / "tree", 1))


def contents(folder: Path) -> dict[str, str | bytes]:
    """Every file's bytes and every link's target, except for files that a build writes."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or (path.is_file() and not GENERATED.intersection(path.parts))
    }


def test_the_tests_are_about_the_tree_they_lie_in() -> None:
    assert Path(sgl_mlx.__file__).is_relative_to(ROOT)


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
