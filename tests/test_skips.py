"""Skipped tests: the last line names them, and `--forbid-skips` fails on unexpected ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.darwin import LINUX_ONLY

TESTS = """
import pytest

@pytest.mark.skip(reason="no chromium on PATH (Debian: apt-get install chromium)")
@pytest.mark.parametrize("page", range(3))
def test_page(page): ...

@pytest.mark.skip(reason="needs Metal")
def test_kernel(): ...

def test_passes(): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of tests under this project's conftest."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "darwin.py", "gpu.py"):
        shutil.copy(Path(__file__).parent / name, tmp_path / "tests")
    (tmp_path / "tests/test_some.py").write_text(TESTS, "utf-8")
    return tmp_path


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("--numprocesses", "2")])
def test_the_last_line_says_what_was_not_run_and_how_to_run_it(
    folder: Path, options: tuple[str, ...]
) -> None:
    done = run(folder, *options)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout
    assert last == "Tests not run: 3 (no chromium on PATH (Debian: apt-get install chromium))"


def test_a_forbidden_skip_fails_unless_it_is_expected(folder: Path) -> None:
    done = run(folder, "--forbid-skips")
    assert done.returncode == 1
    assert "1 passed, 1 skipped, 3 errors" in done.stdout
    assert "unexpected skip: no chromium" in done.stdout


def test_on_a_mac_a_test_that_needs_linux_is_skipped_only_if_it_is_listed(folder: Path) -> None:
    text = "import pytest\n\n@pytest.mark.skip(reason='needs Linux: {}')\ndef test_it(): ...\n"
    for name in ("cpu_kernels/test_one.py", "lang/test_two.py"):
        file = folder / "tests" / name
        file.parent.mkdir()
        file.write_text(text.format(name), "utf-8")
    done = run(folder, "--as-darwin", "m2", "--rootdir", str(folder), "-k", "test_it")
    assert done.returncode == 1, done.stdout
    assert re.search(r"1 skipped, .*1 error", done.stdout)
    assert "needs Linux: lang/test_two.py: not in LINUX_ONLY" in done.stdout
    assert run(folder, "-k", "test_it").returncode == 0


def test_a_simulated_mac_leaves_no_files_behind(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import tempfile\n\ndef test_it(tmp_path): assert not tempfile.mkdtemp()\n"
    (folder / "tests/test_some.py").write_text(text, "utf-8")
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(scratch))
    assert "1 failed" in run(folder, "--as-darwin", "m2", "-k", "test_it").stdout
    assert [x.name for x in scratch.iterdir() if x.name.startswith("darwin-")] == []


def test_every_collected_test_that_needs_linux_is_listed(request: pytest.FixtureRequest) -> None:
    def needs_linux(item: pytest.Item) -> bool:
        reasons = [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")]
        return "cpu_kernels" in getattr(item, "fixturenames", ()) or "needs Linux" in str(reasons)

    unlisted = [
        item.nodeid
        for item in request.session.items
        if needs_linux(item) and not item.nodeid.startswith(LINUX_ONLY)
    ]
    assert unlisted == [], "not in LINUX_ONLY of tests/darwin.py"


def test_the_tests_that_need_linux_exist_and_say_so() -> None:
    root = Path(__file__).parent.parent
    for name in LINUX_ONLY:
        place = root / name.partition("::")[0]
        files = [place] if place.is_file() else list(place.rglob("*.py"))
        said = "".join(file.read_text("utf-8") for file in files)
        assert "needs Linux" in said or "cpu_kernels" in said, name
