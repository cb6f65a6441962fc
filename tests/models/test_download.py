"""Downloads from a hub on a loopback address, by processes of their own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.hub import COMMIT, REPO, Hub, serving
from tests.patience import PATIENCE

PULL = ("models", "pull", REPO)
CHUNK = 10 * 2**20
"""The hub's library takes bodies in pieces of this size."""


@pytest.fixture
def big_folder(folder: Path) -> Path:
    """A model whose second weight file is larger than what is read from a socket at once."""
    (folder / "model-extra.safetensors").write_bytes(os.urandom(3 * CHUNK))
    return folder


@pytest.fixture
def hub(big_folder: Path) -> Iterator[Hub]:
    with serving(big_folder) as found:
        yield found


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from sgl_mlx.cli import main; main()", *args]


def environment(hub: Hub, home: Path) -> dict[str, str]:
    skip = ("SGL_MLX_OFFLINE", "HF_HUB_OFFLINE", "CI")
    kept = {name: value for name, value in os.environ.items() if name not in skip}
    return {**kept, **hub.environment(home), "COLUMNS": "100"}


def sgl(hub: Hub, home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), env=environment(hub, home), capture_output=True, text=True, check=False
    )


def test_what_is_downloaded_how_much_and_where_to_is_said_once(
    hub: Hub, big_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = sgl(hub, home, *PULL)
    assert done.returncode == 0, done.stderr
    size = sum(file.stat().st_size for file in big_folder.iterdir())
    count = len(list(big_folder.iterdir()))
    told = f"downloading {REPO}: {count} files, {size / 1e6:,.0f} MB, into {home}/hub"
    assert told in done.stderr
    path = Path(done.stdout.strip())
    assert path.name == COMMIT
    assert {f.name: f.read_bytes() for f in path.iterdir()} == {
        f.name: f.read_bytes() for f in big_folder.iterdir()
    }
    again = sgl(hub, home, *PULL)
    assert (again.stdout, "downloading" in again.stderr) == (done.stdout, False)


def test_a_connection_that_drops_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.drop_at = 2 * CHUNK
    done = sgl(hub, tmp_path / "home", *PULL)
    assert done.returncode == 0, done.stderr
    taken_up = [r for r in hub.ranges if r is not None]
    assert [int(re.findall(r"\d+", r)[0]) for r in taken_up] == [2 * CHUNK]


def test_ctrl_c_ends_a_download_at_once_and_keeps_complete_files(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    hub.stall_at = CHUNK
    process = subprocess.Popen(
        command(*PULL), env=environment(hub, home), stderr=subprocess.PIPE, text=True
    )
    assert hub.stalled.wait(PATIENCE)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE)  # though the hub never answers
    assert process.returncode == 130
    assert told.splitlines()[-1] == "interrupted"
    assert "Traceback" not in told
    kept = {file.name for file in home.rglob("snapshots/*/*")}
    assert {"config.json", "tokenizer.json"} <= kept
    hub.stall_at = None
    hub.go_on.set()
    done = sgl(hub, home, *PULL)
    missing = set(hub.files) - kept
    assert done.returncode == 0, done.stderr
    assert f"{len(missing)} file" in done.stderr


def test_a_terminal_shows_a_bar_for_the_weights(hub: Hub, tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    process = subprocess.Popen(
        command(*PULL),
        env=environment(hub, tmp_path / "home"),
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    shown = _read_all(screen)
    assert process.wait(PATIENCE) == 0, shown
    assert re.search(r"model-extra\.safetensors: +\d+%\|", shown)
    assert "100%" in shown


def test_the_first_generate_fetches_its_model_and_runs_it(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as hub:
        asked = ("generate", "ab", "--max-tokens", "2", "--model", REPO)
        done = sgl(hub, tmp_path / "home", *asked)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"downloading {REPO}: 3 files, \d+ MB, into \S+/home/hub", done.stderr)


def test_without_a_terminal_no_bar_is_drawn(hub: Hub, tmp_path: Path) -> None:
    assert "%|" not in sgl(hub, tmp_path / "home", *PULL).stderr


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    program = (
        "import shutil; from collections import namedtuple; from sgl_mlx.cli import main\n"
        "shutil.disk_usage = lambda folder: namedtuple('usage', 'free')(1_000_000)\n"
        f"main(['models', 'pull', '{REPO}'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"but only 1 MB are free there; .*HF_HOME", done.stderr)
    assert hub.ranges == []


def test_a_model_that_cannot_run_is_refused_before_its_weights_are_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files = {**hub.files, "config.json": b'{"model_type": "deepseek_v41"}'}
    done = sgl(hub, tmp_path / "home", *PULL)
    told = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert f"{REPO} was not downloaded: architecture 'deepseek_v41' does not run here" in told
    assert "mlx_lm.generate" in told
    assert "downloading" not in told
    assert hub.ranges == []


def test_a_repository_without_a_configuration_is_said_to_be_no_model(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files = {name: content for name, content in hub.files.items() if name != "config.json"}
    done = sgl(hub, tmp_path / "home", "models", "info", REPO)
    assert "has no config.json" in " ".join(done.stderr.split())


def test_a_repository_that_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    done = sgl(hub, tmp_path / "home", "models", "pull", "org/other")
    assert done.returncode == 1
    assert "no repository org/other" in done.stderr


def _read_all(screen: int) -> str:
    read = b""
    while True:
        try:
            more = os.read(screen, 4096)
        except OSError:  # how Linux tells that the other end was closed
            more = b""
        if not more:
            return read.decode()
        read += more
